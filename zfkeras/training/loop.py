"""One training loop for every strategy (section 3 of the paper).

The loop is explicit, built on `strategy.run`: Keras 3's `fit` does not run under multi-worker
strategies. Whatever the loop knows is in its checkpoints or a pure function of the configuration,
so a run that is killed at any step and started again ends as if it had not been.
"""

import contextlib
import math
import os
import signal
import tempfile
import threading
import time
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from tqdm import tqdm

from zfkeras.data import batches, datasets, images
from zfkeras.models import in_float32
from zfkeras.training.evaluation import Evaluator, misses
from zfkeras.training.optimizer import SGD
from zfkeras.training.run import (
    BEST,
    CHECKPOINTS,
    MEAN_IMAGE,
    SUMMARIES,
    Run,
    RunDirectory,
    TrainingError,
    build_network,
    errors_of,
)
from zfkeras.training.schedule import rate_factor
from zfkeras.training.strategy import distribute, is_chief, make_strategy
from zfkeras.training.summaries import Summaries

KEPT_CHECKPOINTS = 3


class TrainingStopped(Exception):
    """A run that was asked to stop and has saved where it was.

    Attributes:
        signal_number: The signal that asked, or None if another worker was asked.
    """

    def __init__(self, message, signal_number):
        super().__init__(message)
        self.signal_number = signal_number


def train(config, workdir, on_epoch=None, progress=False):
    """Trains a network, or goes on with a run that was interrupted.

    Args:
        config: A `TrainingConfig`.
        workdir: Directory of the run, made if missing. Several workers need one that they share.
        on_epoch: Called with each epoch's row of `metrics.csv`, a dictionary.
        progress: Whether to show progress bars on standard error.

    Returns:
        The finished `Run`.

    Raises:
        TrainingError: If the work directory belongs to another run or cannot be written, or the
            loss stops being finite.
        TrainingStopped: If SIGINT or SIGTERM arrived. The run is saved; starting it again goes on.
        DatasetError: If the data set cannot be used.
    """
    # Both come before anything that runs on a device.
    strategy = make_strategy(config.strategy)
    if config.deterministic:
        tf.config.experimental.enable_op_determinism()
    keras.utils.set_random_seed(config.seed)
    replicas = strategy.num_replicas_in_sync
    if config.global_batch_size % replicas:
        raise TrainingError(
            f"The global batch must divide among {replicas} replicas. "
            f"Received: {config.global_batch_size}."
        )
    training, validation = (
        datasets.load(config.dataset, split, config.side, config.data_dir)
        for split in datasets.SPLITS
    )
    with strategy.scope():
        model = build_network(config, training.class_names, config.precision)
    directory = RunDirectory(workdir, writes=is_chief(strategy))
    # Only now: a run that cannot start leaves no trace that a corrected one would stumble over.
    directory.claim(config, training.class_names, _bytes_needed(model, config))
    with datasets.naming_broken_pictures(config.dataset):
        training, validation, mean_image = _read_data(
            config, directory, training, validation, progress
        )
        loop = _Loop(config, strategy, model, mean_image, directory)
        return loop.run(training, validation, on_epoch, progress)


class _Loop:
    """A run under way: what its checkpoints hold, and how it goes on from there."""

    def __init__(self, config, strategy, model, mean_image, directory):
        self.config, self.strategy, self.directory = config, strategy, directory
        self.model, self.mean_image = model, mean_image
        with strategy.scope():
            self.optimizer = SGD(config.learning_rate, config.momentum)
            if config.precision == "mixed_float16":
                self.optimizer = keras.optimizers.LossScaleOptimizer(self.optimizer)
            self.optimizer.build(model.trainable_variables)
        self.step = training_step(model, self.optimizer, strategy, mean_image, config)
        self.evaluator = Evaluator([model], [mean_image], strategy=strategy)
        self.epochs_done = tf.Variable(0, dtype=tf.int64)
        self.steps_done = tf.Variable(0, dtype=tf.int64)  # Of the epoch under way.
        # Sums over the epoch so far: loss, misses, pictures; and the seconds it has taken.
        self.totals = tf.Variable(tf.zeros(4, tf.float64))
        checkpoint = tf.train.Checkpoint(
            model=model,
            optimizer=self.optimizer,
            # Keras hides the state of dropout's random numbers from checkpoints of the model.
            dropout=[variable.value for variable in model.non_trainable_variables],
            epochs_done=self.epochs_done,
            steps_done=self.steps_done,
            totals=self.totals,
        )
        latest = tf.train.latest_checkpoint(str(directory.path / CHECKPOINTS))
        if latest:
            with directory.naming_damage():
                checkpoint.restore(latest).assert_consumed()
        # Every worker must take part in saving; what the others write is nobody's.
        self.nowhere = None if directory.writes else tempfile.TemporaryDirectory()
        place = directory.path if directory.writes else Path(self.nowhere.name)
        self.checkpoints = tf.train.CheckpointManager(
            checkpoint, str(place / CHECKPOINTS), max_to_keep=KEPT_CHECKPOINTS
        )
        self.best = tf.train.CheckpointManager(
            tf.train.Checkpoint(model=model), str(place / BEST), max_to_keep=1
        )
        self.metrics = directory.read_metrics(int(self.epochs_done))

    def run(self, training, validation, on_epoch, progress):
        """Trains to the end of the last epoch."""
        summaries = None
        if self.directory.writes:
            summaries = Summaries(self.directory.path / SUMMARIES)
        with _StopRequest() as stop, self._naming_lost_workers():
            while int(self.epochs_done) < self.config.epochs:
                self._train_epoch(training, stop, summaries, progress)
                row = self._finish_epoch(validation, summaries, progress)
                if on_epoch:
                    on_epoch(row)
        if summaries:
            summaries.close()
        return Run(
            self.model,
            self.config,
            training.class_names,
            self.mean_image.numpy(),
            errors_of(self.metrics[-1]),
            self.metrics,
            self.directory.writes,
        )

    def _train_epoch(self, training, stop, summaries, progress):
        config, epoch, first = self.config, int(self.epochs_done), int(self.steps_done)
        batch_size = config.global_batch_size
        steps = batches.steps_per_epoch(training.count, batch_size)
        iterator = distribute(
            self.strategy,
            lambda share: batches.training_batches(
                training, batch_size, config.seed, epoch, first, share
            ),
        )
        totals = self.totals.numpy()
        bar = tqdm(
            desc=f"epoch {epoch + 1}/{config.epochs} ",
            total=training.count,
            initial=min(first * batch_size, training.count),
            unit=" images",
            bar_format="{desc}|{bar}| {rate_fmt}{postfix}",
            leave=False,
            disable=not progress,
        )
        with bar:
            for index in range(first, steps):
                started = time.perf_counter()
                learning_rate = self._learning_rate(index, steps)
                self.optimizer.learning_rate = learning_rate
                loss, missed, count, stopping = self.step(
                    next(iterator), tf.constant(float(stop.requested))
                ).numpy()
                seconds = time.perf_counter() - started
                totals += loss, missed, count, seconds
                if not math.isfinite(loss):
                    raise self._not_finite("loss", epoch, index + 1)
                left = ((config.epochs - epoch) * steps - index - 1) * totals[3] / (index + 1)
                # Most of it before the bar: what a narrow terminal cuts off is the end.
                bar.set_description_str(
                    f"epoch {epoch + 1}/{config.epochs} step {index + 1}/{steps} "
                    f"loss {totals[0] / totals[2]:.3f} error {totals[1] / totals[2]:.1%} ",
                    refresh=False,
                )
                bar.set_postfix_str(f"{tqdm.format_interval(left)} left", refresh=False)
                bar.update(int(count))
                if summaries:
                    summaries.write_step(
                        epoch * steps + index,
                        loss=loss / count,
                        top1_error=missed / count,
                        learning_rate=learning_rate,
                        images_per_second=count / seconds,
                    )
                self.steps_done.assign(index + 1)
                self.totals.assign(totals)
                # The loss speaks of the weights before the update, what is kept of those after.
                last = index + 1 == steps
                saving = stopping or ((index + 1) % config.checkpoint_steps == 0 and not last)
                if (saving or last) and not self._is_finite():
                    raise self._not_finite("network", epoch, index + 1)
                if saving:
                    self._save()
                if stopping:
                    raise TrainingStopped(
                        f"Stopped after step {index + 1} of {steps} of epoch {epoch + 1}. "
                        "The same command goes on from there.",
                        stop.signal_number,
                    )

    def _finish_epoch(self, validation, summaries, progress):
        config, epoch = self.config, int(self.epochs_done) + 1
        loss, missed, count, seconds = self.totals.numpy()
        steps = int(self.steps_done)
        evaluator = self.evaluator
        if epoch == config.epochs and config.precision != "float32":
            # What a run ends with is what ships, and that computes in float32.
            with self.strategy.scope():
                exact = in_float32(self.model)
            evaluator = Evaluator([exact], [self.mean_image], strategy=self.strategy)
        with tqdm(
            desc="validating",
            total=validation.count,
            unit=" images",
            leave=False,
            disable=not progress,
        ) as bar:
            errors = evaluator(validation, config.global_batch_size, bar.update).errors
        row = {
            "epoch": epoch,
            "learning_rate": self._learning_rate(steps - 1, steps),
            "loss": loss / count,
            "training_top1_error": missed / count,
            "validation_top1_error": errors.top1,
            "validation_top5_error": errors.top5,
            "validation_pictures": errors.count,
            "images_per_second": count / seconds,
            "filters_capped": capped_filters(self.model),
        }
        best = min((row["validation_top1_error"] for row in self.metrics), default=math.inf)
        self.metrics.append(row)
        with self.directory.naming_failed_writes():
            self.directory.write_metrics(self.metrics)
            if epoch in config.snapshot_epochs:
                self.directory.write_snapshot(self.model, epoch)
            if errors.top1 < best:
                self.best.save(epoch)
            if summaries:
                summaries.write_epoch(epoch * steps, row, self.model)
        self.epochs_done.assign(epoch)
        self.steps_done.assign(0)
        self.totals.assign(np.zeros(4))
        # The checkpoint last: until it is there, a restart does the epoch's end again.
        self._save()
        return row

    def _learning_rate(self, index, steps):
        """Of a step of the epoch under way."""
        config = self.config
        done = int(self.epochs_done) * steps + index
        factor = rate_factor(
            config.schedule,
            done / (config.epochs * steps),
            [row["validation_top1_error"] for row in self.metrics],
            config.patience,
            config.decay_factor,
        )
        return config.learning_rate * factor * min((done + 1) / (config.warmup_steps or 1), 1)

    def _is_finite(self):
        return all(
            bool(tf.reduce_all(tf.math.is_finite(variable.value)))
            for variable in self.model.trainable_variables
        )

    @contextlib.contextmanager
    def _naming_lost_workers(self):
        try:
            yield
        except (
            tf.errors.AbortedError,
            tf.errors.DeadlineExceededError,
            tf.errors.InternalError,
            tf.errors.UnavailableError,
        ) as error:
            if self.strategy.cluster_resolver is None:
                raise
            raise TrainingError(
                "Another worker cannot be reached. "
                "Start all of them again; they go on from the last checkpoint."
            ) from error

    def _not_finite(self, what, epoch, step):
        return TrainingError(
            f"The {what} is not finite after step {step} of epoch {epoch + 1}. "
            f"The last good checkpoint is kept in {self.directory.path}."
        )

    def _save(self):
        with self.directory.naming_failed_writes():
            self.checkpoints.save()


def training_step(model, optimizer, strategy, mean_image, config):
    """One update on one batch, as a function of what `training_batches` gives.

    Args:
        model: A `ZFNet`.
        optimizer: Its optimizer, built.
        strategy: `tf.distribute.Strategy` under whose scope both were made.
        mean_image: float32 `(side, side, 3)`.
        config: The `TrainingConfig`.

    Returns:
        Function of a distributed batch and a number, 1.0 if this worker wants to stop. It gives
        float32 `(4,)`, summed over all devices: loss, top-1 misses, pictures, who wants to stop.
    """
    input_size = tuple(model.input_shape[1:3])
    variables = model.trainable_variables
    kernels = [variable for variable in variables if variable.name == "kernel"]
    crop_draws, colour_draws = images.CROP_DRAWS, images.COLOUR_DRAWS

    def backpropagate(inputs, targets, weights):
        with tf.GradientTape() as tape:
            logits = model(inputs, training=True)
            losses = weights * tf.nn.softmax_cross_entropy_with_logits(targets, logits)
            # The optimizer adds up the replicas' gradients, so each divides by all the pictures.
            loss = tf.reduce_sum(losses) / config.global_batch_size
            if config.weight_decay:
                # Krizhevsky's kind: part of the gradient, so that it passes through the momentum.
                penalty = sum(tf.nn.l2_loss(kernel.value) for kernel in kernels)
                loss += config.weight_decay * penalty / strategy.num_replicas_in_sync
            loss = optimizer.scale_loss(loss)
        gradients = tape.gradient(loss, [variable.value for variable in variables])
        return tf.reduce_sum(losses), logits, gradients

    if config.jit_compile:
        backpropagate = tf.function(backpropagate, autograph=False, jit_compile=True)

    def replica_step(pictures, labels, weights, draws, stop):
        inputs = images.subtract_mean(pictures, mean_image)
        inputs = images.crop_for_training(inputs, input_size, config.crops, draws[:, :crop_draws])
        if config.colour_jitter:
            colours = draws[:, crop_draws : crop_draws + colour_draws]
            inputs = images.jitter_colour(inputs, config.colour_jitter, colours)
        targets = tf.one_hot(labels, model.num_classes)
        smoothing = config.label_smoothing
        targets = targets * (1 - smoothing) + smoothing / model.num_classes
        loss, logits, gradients = backpropagate(inputs, targets, weights)
        optimizer.apply(gradients, variables)
        missed = tf.reduce_sum(weights * misses(logits, labels, 1))
        return tf.stack([loss, missed, tf.reduce_sum(weights), stop])

    @tf.function(autograph=False)
    def step(batch, stop):
        sums = strategy.run(replica_step, (*batch, stop))
        return strategy.reduce(tf.distribute.ReduceOp.SUM, sums, axis=None)

    return step


def capped_filters(model):
    """How many convolutional filters stand at the limit of their RMS."""
    capped = 0
    if model.filter_rms:
        for name in model.feature_layers:
            kernel = np.asarray(model.get_layer(name).kernel)
            rms = np.sqrt(np.mean(np.square(kernel, dtype=np.float64), axis=(0, 1, 2)))
            # Renormalizing in float32 lands within a few units in the last place.
            capped += int(np.sum(rms >= model.filter_rms * (1 - 1e-5)))
    return capped


def _read_data(config, directory, training, validation, progress):
    """Both splits without what cannot be read, in memory if there is room, and the mean image."""
    facts, room = directory.read_dataset(), config.cache_gib * 2**30
    readings, found = [], {"class_names": list(training.class_names)}
    for split, pictures in zip(datasets.SPLITS, (training, validation), strict=True):
        size = pictures.count * pictures.side**2 * 3
        keep = size <= room
        room -= size if keep else 0
        if facts and not keep:
            known = set(facts[split]["unreadable"])
            if known:
                lost = [i for i in range(pictures.count) if pictures.name(i) in known]
                pictures = pictures.without(lost)
            mean_image = np.load(directory.path / MEAN_IMAGE) if split == "train" else None
            reading = batches.Reading(pictures, mean_image, tuple(facts[split]["unreadable"]))
        else:
            with tqdm(
                desc=f"reading {split} pictures",
                total=pictures.count,
                unit=" images",
                leave=False,
                disable=not progress,
            ) as bar:
                reading = batches.read_through(pictures, keep, bar.update)
        if reading.unreadable and config.strict:
            raise datasets.DatasetError(
                f"{reading.unreadable[0]} cannot be read as a picture, nor can "
                f"{len(reading.unreadable) - 1} others."
            )
        found[split] = {
            "count": reading.pictures.count,
            "unreadable": list(reading.unreadable),
        }
        readings.append(reading)
    mean_image = readings[0].mean_image
    if facts is None:
        directory.write_dataset(found, mean_image)
    else:
        with directory.naming_damage():
            stored_mean = np.load(directory.path / MEAN_IMAGE)
        if facts != found or not np.array_equal(stored_mean, mean_image):
            raise TrainingError(
                f"The pictures of {config.dataset} have changed since the run in {directory.path} "
                "began."
            )
    return readings[0].pictures, readings[1].pictures, tf.constant(mean_image)


def _bytes_needed(model, config):
    weights = 4 * model.count_params()
    # A checkpoint has momentum as well; a new one is written before the oldest goes.
    checkpoints = 2 * weights * (KEPT_CHECKPOINTS + 1)
    snapshots = sum(epoch <= config.epochs for epoch in config.snapshot_epochs)
    return checkpoints + weights * (2 + snapshots)


class _StopRequest:
    """Whether SIGINT or SIGTERM has arrived; a second one is not waited for."""

    def __enter__(self):
        self.signal_number = None
        self._previous = {}
        # Python gives signals to the main thread only; elsewhere nobody listens.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *error):
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    @property
    def requested(self):
        return self.signal_number is not None

    def _receive(self, number, frame):
        if self.requested:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.signal_number = number
