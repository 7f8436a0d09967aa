"""One training loop for every strategy (section 3 of the paper).

The loop is explicit, built on `strategy.run`: Keras 3's `fit` does not run under multi-worker
strategies. A work directory holds the run's `config.json`, `metrics.csv`, `mean_image.npy`, and
checkpoints, one per epoch; a second start with the same work directory goes on from the last.
"""

import contextlib
import csv
import json
import time
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from tqdm import tqdm

from zfkeras.architecture import ARCHITECTURES
from zfkeras.data import datasets, images
from zfkeras.models import ZFNet, in_float32
from zfkeras.training.config import TrainingConfig
from zfkeras.training.evaluation import Errors, evaluate, misses
from zfkeras.training.schedule import rate_factor
from zfkeras.training.strategy import make_strategy
from zfkeras.writing import replacing

# Decoded pictures held for shuffling. All of a small data set; of ImageNet, whose folders are mixed
# when they are listed, what fits in memory.
SHUFFLE_PICTURES = 16_384
KEPT_CHECKPOINTS = 2


class TrainingError(ValueError):
    """A run that cannot start or go on; the message says why."""


@dataclass(frozen=True)
class Run:
    """A trained model and how it was made.

    Attributes:
        model: The `ZFNet` after the last epoch.
        config: The `TrainingConfig`.
        class_names: Name of each class.
        mean_image: float32 `(side, side, 3)`, per-pixel mean of the training pictures.
        errors: `Errors` on the validation pictures.
        metrics: One dictionary per epoch, the rows of `metrics.csv`.
    """

    model: keras.Model
    config: object
    class_names: tuple[str, ...]
    mean_image: np.ndarray
    errors: Errors
    metrics: list[dict]


def train(config, workdir, on_epoch=None, progress=False):
    """Trains a network, or goes on with a run that was interrupted.

    Args:
        config: A `TrainingConfig`.
        workdir: Directory of the run, made if missing.
        on_epoch: Called with each epoch's row of `metrics.csv`, a dictionary.
        progress: Whether to show progress bars on standard error.

    Returns:
        The finished `Run`.

    Raises:
        TrainingError: If the work directory belongs to another run, or the loss stops being
            finite.
        DatasetError: If the data set cannot be used.
    """
    with datasets.naming_broken_pictures(config.dataset):
        return _train(config, Path(workdir), on_epoch, progress)


def _train(config, workdir, on_epoch, progress):
    training = datasets.load(config.dataset, "train", config.side, config.data_dir)
    validation = datasets.load(config.dataset, "validation", config.side, config.data_dir)
    if training.count < config.global_batch_size:
        raise TrainingError(
            f"{config.dataset} has {training.count} training pictures. "
            f"Expected at least a batch of {config.global_batch_size}."
        )
    keras.utils.set_random_seed(config.seed)
    strategy = make_strategy(config.strategy)
    if config.global_batch_size % strategy.num_replicas_in_sync:
        raise TrainingError(
            f"The global batch must divide among {strategy.num_replicas_in_sync} replicas. "
            f"Received: {config.global_batch_size}."
        )
    cached = _cached(training, config), _cached(validation, config)
    # Only now: a run that cannot start leaves no trace that a corrected one would stumble over.
    _claim(workdir, config, training.class_names)
    mean_image = _mean_image(workdir, cached[0], training.count, progress)
    with strategy.scope():
        model = _network(config, training.class_names, config.precision)
        optimizer = keras.optimizers.SGD(config.learning_rate, config.momentum)
        if config.precision == "mixed_float16":
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
        optimizer.build(model.trainable_variables)
    step = _training_step(model, optimizer, strategy, mean_image, config)
    epochs_done = tf.Variable(0, dtype=tf.int64)
    # Keras hides the state of dropout's random numbers from checkpoints of the model.
    dropout = [variable.value for variable in model.non_trainable_variables]
    checkpoint = tf.train.Checkpoint(
        model=model, optimizer=optimizer, epochs_done=epochs_done, dropout=dropout
    )
    checkpoints = tf.train.CheckpointManager(
        checkpoint, str(workdir / "checkpoints"), max_to_keep=KEPT_CHECKPOINTS
    )
    if checkpoints.latest_checkpoint:
        with _naming_damage(workdir):
            checkpoint.restore(checkpoints.latest_checkpoint).assert_consumed()
    metrics = _read_metrics(workdir, int(epochs_done))

    for epoch in range(int(epochs_done), config.epochs):
        started = time.perf_counter()
        errors_so_far = [row["validation_top1_error"] for row in metrics]
        totals = np.zeros(3)
        steps = training.count // config.global_batch_size
        batches = strategy.experimental_distribute_dataset(_epoch(cached[0], config, epoch))
        bar = tqdm(batches, f"epoch {epoch + 1}/{config.epochs}", steps, disable=not progress)
        for index, (pictures, labels, seeds) in enumerate(bar):
            done = epoch * steps + index
            factor = rate_factor(config.schedule, done / (config.epochs * steps), errors_so_far)
            if done < config.warmup_steps:
                factor *= (done + 1) / config.warmup_steps
            learning_rate = config.learning_rate * factor
            optimizer.learning_rate = learning_rate
            totals += step(pictures, labels, seeds).numpy()
            if not np.isfinite(totals[0]):
                raise TrainingError(
                    f"The loss is not finite after step {index + 1} of epoch {epoch + 1}. "
                    f"The last checkpoint is kept in {workdir}."
                )
            bar.set_postfix(loss=f"{totals[0] / totals[2]:.3f}", refresh=False)
        seconds = time.perf_counter() - started
        last = epoch + 1 == config.epochs
        with strategy.scope():
            # What a run ends with is what ships, and that computes in float32.
            evaluated = in_float32(model) if last else model
        errors = evaluate(evaluated, cached[1], mean_image, config.global_batch_size, strategy)
        metrics.append(
            {
                "epoch": epoch + 1,
                "learning_rate": learning_rate,
                "loss": totals[0] / totals[2],
                "training_top1_error": totals[1] / totals[2],
                "validation_top1_error": errors.top1,
                "validation_top5_error": errors.top5,
                "validation_pictures": errors.count,
                "images_per_second": totals[2] / seconds,
            }
        )
        epochs_done.assign(epoch + 1)
        _write_metrics(workdir, metrics)
        checkpoints.save(epoch + 1)
        if on_epoch:
            on_epoch(metrics[-1])

    return Run(
        model, config, training.class_names, mean_image.numpy(), _last_errors(metrics), metrics
    )


def load_run(workdir):
    """The finished or interrupted `Run` in a work directory, at its last checkpoint.

    Raises:
        TrainingError: If the directory holds no run that reached a checkpoint.
    """
    workdir = Path(workdir)
    latest = tf.train.latest_checkpoint(str(workdir / "checkpoints"))
    if latest is None or not (workdir / "config.json").exists():
        raise TrainingError(f"{workdir} holds no training run with a checkpoint.")
    with _naming_damage(workdir):
        config = TrainingConfig.from_json((workdir / "config.json").read_text())
        class_names = tuple(json.loads((workdir / "class_names.json").read_text()))
        mean_image = np.load(workdir / "mean_image.npy")
    # Exported models compute in float32 whatever they were trained in.
    model = _network(config, class_names, "float32")
    epochs_done = tf.Variable(0, dtype=tf.int64)
    with _naming_damage(workdir):
        checkpoint = tf.train.Checkpoint(model=model, epochs_done=epochs_done)
        checkpoint.restore(latest).expect_partial()
    metrics = _read_metrics(workdir, int(epochs_done))
    return Run(model, config, class_names, mean_image, _last_errors(metrics), metrics)


def _network(config, class_names, dtype):
    architecture = ARCHITECTURES[config.architecture]
    return ZFNet(
        architecture, len(class_names), config.initialization, config.filter_rms, dtype=dtype
    )


def _training_step(model, optimizer, strategy, mean_image, config):
    input_size = ARCHITECTURES[config.architecture].input_size
    variables = model.trainable_variables
    kernels = [variable for variable in variables if variable.name == "kernel"]

    def replica_step(pictures, labels, seeds):
        inputs = images.subtract_mean(pictures, mean_image)
        inputs = images.crop_for_training(inputs, input_size, config.crops, seeds[0])
        if config.colour_jitter:
            # The seed's other half, so that place and colour are drawn independently.
            inputs = images.jitter_colour(inputs, config.colour_jitter, seeds[0][::-1])
        targets = tf.one_hot(labels, model.num_classes)
        smoothing = config.label_smoothing
        targets = targets * (1 - smoothing) + smoothing / model.num_classes
        with tf.GradientTape() as tape:
            logits = model(inputs, training=True)
            losses = tf.nn.softmax_cross_entropy_with_logits(targets, logits)
            # The optimizer adds up the replicas' gradients, so each divides by all the pictures.
            loss = tf.reduce_sum(losses) / config.global_batch_size
            if config.weight_decay:
                # Krizhevsky's kind: part of the gradient, so that it passes through the momentum.
                penalty = sum(tf.nn.l2_loss(kernel.value) for kernel in kernels)
                loss += config.weight_decay * penalty / strategy.num_replicas_in_sync
            loss = optimizer.scale_loss(loss)
        gradients = tape.gradient(loss, [variable.value for variable in variables])
        optimizer.apply(gradients, variables)
        return tf.stack(
            [
                tf.reduce_sum(losses),
                tf.reduce_sum(misses(logits, labels, 1)),
                tf.cast(tf.shape(labels)[0], tf.float32),
            ]
        )

    @tf.function(autograph=False, reduce_retracing=True)
    def step(pictures, labels, seeds):
        sums = strategy.run(replica_step, (pictures, labels, seeds))
        return strategy.reduce(tf.distribute.ReduceOp.SUM, sums, axis=None)

    return step


def _epoch(examples, config, epoch):
    """The batches of one epoch, with a seed for every picture: a pure function of the config."""
    order = int(np.random.SeedSequence((config.seed, epoch)).generate_state(1)[0])
    shuffled = examples.shuffle(SHUFFLE_PICTURES, seed=order, reshuffle_each_iteration=False)

    def with_seed(index, example):
        image, label = example
        return image, label, tf.stack([tf.constant(order, tf.int64), index])

    numbered = shuffled.enumerate().map(with_seed)
    return numbered.batch(config.global_batch_size, drop_remainder=True).prefetch(2)


def _cached(pictures, config):
    size = pictures.count * config.side**2 * 3
    return pictures.examples.cache() if size <= config.cache_gib * 2**30 else pictures.examples


def _mean_image(workdir, examples, count, progress):
    path = workdir / "mean_image.npy"
    if path.exists():
        return tf.constant(np.load(path))
    batches = tqdm(
        examples.batch(256), "mean image", -(-count // 256), disable=not progress, unit="batch"
    )
    mean_image = images.mean_image(pictures for pictures, _ in batches)
    with replacing(path) as beside:
        np.save(beside, mean_image.numpy())
    return mean_image


def _claim(workdir, config, class_names):
    """Makes the work directory, or checks that it belongs to this very run."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        path = workdir / "config.json"
        if path.exists():
            if path.read_text() != config.to_json():
                raise TrainingError(
                    f"{workdir} holds a run with another configuration ({path}). "
                    "Expected an empty work directory or the same configuration."
                )
            stored = json.loads((workdir / "class_names.json").read_text())
            if stored != list(class_names):
                raise TrainingError(
                    f"{workdir} holds a run on the classes {', '.join(stored)}. "
                    f"Received: {', '.join(class_names)}."
                )
            return
        # The configuration last: it is what marks a directory as a run's.
        with replacing(workdir / "class_names.json") as beside:
            beside.write_text(json.dumps(class_names))
        with replacing(path) as beside:
            beside.write_text(config.to_json())
    except OSError as error:
        raise TrainingError(f"{workdir} cannot be written: {error.strerror}.") from error


def _last_errors(metrics):
    last = metrics[-1]
    return Errors(
        last["validation_top1_error"], last["validation_top5_error"], last["validation_pictures"]
    )


@contextlib.contextmanager
def _naming_damage(workdir):
    """Turns whatever a damaged file of a run raises into an error that names the run."""
    try:
        yield
    except Exception as error:
        raise TrainingError(f"{workdir} holds a damaged run: {error}") from error


def _read_metrics(workdir, epochs_done):
    path = workdir / "metrics.csv"
    if not epochs_done:
        return []
    with _naming_damage(workdir), path.open(newline="") as file:
        metrics = [
            {
                name: int(value) if name in ("epoch", "validation_pictures") else float(value)
                for name, value in row.items()
            }
            for row in csv.DictReader(file)
        ]
        if len(metrics) < epochs_done:
            raise ValueError(f"metrics.csv has {len(metrics)} of {epochs_done} epochs")
    return metrics[:epochs_done]


def _write_metrics(workdir, metrics):
    with replacing(workdir / "metrics.csv") as beside, beside.open("w", newline="") as file:
        writer = csv.DictWriter(file, metrics[-1])
        writer.writeheader()
        writer.writerows(metrics)
