"""Top-1 and top-5 error of one network, or of several averaged, with one view or ten."""

import csv
import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow as tf

from zfkeras.data import batches, images
from zfkeras.training.strategy import distribute
from zfkeras.writing import replacing

VIEWS = (1, 10)


@dataclass(frozen=True)
class Errors:
    """Fractions in [0, 1] over `count` pictures."""

    top1: float
    top5: float
    count: int


@dataclass(frozen=True)
class Evaluation:
    """What a network made of every picture of a data set.

    Attributes:
        errors: `Errors` over all pictures.
        confusion: int64 `(classes, classes)`: pictures of each class (row) by the class that they
            were taken for (column).
    """

    errors: Errors
    confusion: np.ndarray

    def save(self, folder, class_names, **settings):
        """Writes `errors.json`, with the settings given, and `confusion.csv`.

        Args:
            folder: Folder to write to, made if missing.
            class_names: Name of each class.
            **settings: What else to say in `errors.json`.
        """
        folder = Path(folder)
        with replacing(folder / "errors.json") as beside:
            facts = {**dataclasses.asdict(self.errors), **settings}
            beside.write_text(json.dumps(facts, indent=2) + "\n")
        with replacing(folder / "confusion.csv") as beside, beside.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["class", *class_names])
            for name, counts in zip(class_names, self.confusion.tolist(), strict=True):
                writer.writerow([name, *counts])


def misses(scores, labels, k):
    """1.0 where the label is not among the k largest scores, else 0.0; float32 `(batch,)`."""
    # Not `in_top_k`, which counts every tie as a hit: a dead network would make no errors.
    _, best = tf.math.top_k(scores, min(k, scores.shape[-1]))
    hits = tf.reduce_any(best == tf.cast(labels, tf.int32)[:, None], axis=1)
    return 1.0 - tf.cast(hits, tf.float32)


class Evaluator:
    """Evaluates networks on data sets: traced once, for any number of calls.

    Args:
        models: Keras models from inputs to logits, all of the same classes. Several are averaged:
            the mean of their probabilities counts (Table 2, "5 convnets").
        mean_images: float32 `(side, side, 3)`, one for each model, all of one side.
        views: 1, the centre of every picture; or 10, whose probabilities are averaged: the four
            corners and the centre, and their flips (Krizhevsky et al., 2012, section 4.1).
        strategy: `tf.distribute.Strategy` to run under; the current one if None.

    Raises:
        ValueError: If the models do not fit together, or `views` is not one of `VIEWS`.
    """

    def __init__(self, models, mean_images, views=1, strategy=None):
        if views not in VIEWS:
            raise ValueError(f"`views` must be 1 or 10. Received: views={views}.")
        sides = {len(mean_image) for mean_image in mean_images}
        classes = {model.output_shape[-1] for model in models}
        if len(sides) != 1 or len(classes) != 1:
            raise ValueError(
                "Models that are averaged must have the same classes and the same size of pictures "
                f"before cropping. Received: {sorted(classes)} classes, sides of {sorted(sides)}."
            )
        self.classes = classes.pop()
        self.strategy = strategy or tf.distribute.get_strategy()
        members = list(zip(models, mean_images, strict=True))

        def probabilities(pictures):
            total = 0.0
            for model, mean_image in members:
                inputs, size = images.subtract_mean(pictures, mean_image), model.input_shape[1:3]
                crops = images.ten_views(inputs, size)
                if views == 1:
                    crops = [images.centre_crop(inputs, size)]
                # View by view: ten times the memory would be needed for all at once.
                for crop in crops:
                    total += tf.nn.softmax(model(crop, training=False))
            return total / (len(members) * views)

        def count(pictures, labels, weights):
            scores = probabilities(pictures)
            sums = [tf.reduce_sum(weights * misses(scores, labels, k)) for k in (1, 5)]
            guesses = tf.argmax(scores, axis=1, output_type=tf.int32)
            confusion = tf.math.confusion_matrix(
                labels, guesses, self.classes, weights=weights, dtype=tf.float32
            )
            return tf.stack(sums), confusion

        @tf.function(autograph=False)
        def step(pictures, labels, weights):
            counts = self.strategy.run(count, (pictures, labels, weights))
            return [
                self.strategy.reduce(tf.distribute.ReduceOp.SUM, part, axis=None) for part in counts
            ]

        self._step = step

    def __call__(self, pictures, batch_size=128, on_batch=lambda count: None):
        """Evaluates on every picture once.

        Args:
            pictures: `IndexedPictures` or `StreamedPictures` of the models' side.
            batch_size: Pictures per step over all replicas.
            on_batch: Called with the number of pictures of each step.

        Returns:
            An `Evaluation`. With fewer than six classes the top-5 error is 0.

        Raises:
            ValueError: If there are no pictures.
        """
        if not pictures.count:
            raise ValueError("Expected at least one picture to evaluate on. Received: none.")
        iterator = distribute(
            self.strategy, lambda share: batches.evaluation_batches(pictures, batch_size, share)
        )
        totals, confusion = np.zeros(2), np.zeros((self.classes, self.classes), np.int64)
        for index in range(batches.steps_per_epoch(pictures.count, batch_size)):
            sums, counts = self._step(*next(iterator))
            # Counted up outside: a float32 sum stops counting at 2**24.
            totals += sums.numpy()
            confusion += counts.numpy().astype(np.int64)
            on_batch(min(batch_size, pictures.count - index * batch_size))
        top1, top5 = totals / pictures.count
        return Evaluation(Errors(float(top1), float(top5), pictures.count), confusion)
