"""Top-1 and top-5 error."""

from dataclasses import dataclass

import tensorflow as tf

from zfkeras.data import images


@dataclass(frozen=True)
class Errors:
    """Fractions in [0, 1] over `count` pictures."""

    top1: float
    top5: float
    count: int


def misses(logits, labels, k):
    """1.0 where the label is not among the k largest logits, else 0.0; float32 `(batch,)`."""
    # Not `in_top_k`, which counts every tie as a hit: a dead network would make no errors.
    _, best = tf.math.top_k(logits, min(k, logits.shape[-1]))
    hits = tf.reduce_any(best == tf.cast(labels, tf.int32)[:, None], axis=1)
    return 1.0 - tf.cast(hits, tf.float32)


def evaluate(model, examples, mean_image, batch_size=128, strategy=None):
    """Top-1 and top-5 error with one centre view of every picture.

    Args:
        model: Keras model from inputs to logits.
        examples: Dataset of `(image, label)`, uint8 squares and int32, not batched.
        mean_image: float32 `(side, side, 3)`, of the squares' size.
        batch_size: Pictures per step over all replicas. The last batch may be smaller; every
            picture counts.
        strategy: `tf.distribute.Strategy` to run under; the current one if None.

    Returns:
        `Errors`. With fewer than six classes the top-5 error is 0.

    Raises:
        ValueError: If there are no examples.
    """
    strategy = strategy or tf.distribute.get_strategy()
    input_size = tuple(model.input_shape[1:3])

    def count_misses(pictures, labels):
        inputs = images.centre_crop(images.subtract_mean(pictures, mean_image), input_size)
        logits = model(inputs, training=False)
        sums = [tf.reduce_sum(misses(logits, labels, k)) for k in (1, 5)]
        return tf.stack([*sums, tf.cast(tf.shape(labels)[0], tf.float32)])

    @tf.function(autograph=False, reduce_retracing=True)
    def step(pictures, labels):
        counts = strategy.run(count_misses, (pictures, labels))
        return strategy.reduce(tf.distribute.ReduceOp.SUM, counts, axis=None)

    batches = examples.batch(batch_size).prefetch(tf.data.AUTOTUNE)
    totals = [0.0, 0.0, 0.0]
    for pictures, labels in strategy.experimental_distribute_dataset(batches):
        # Counted up in Python: a float32 sum stops counting at 2**24.
        totals = [a + float(b) for a, b in zip(totals, step(pictures, labels), strict=True)]
    top1, top5, count = totals
    if not count:
        raise ValueError("Expected at least one picture to evaluate on. Received: none.")
    return Errors(top1 / count, top5 / count, int(count))
