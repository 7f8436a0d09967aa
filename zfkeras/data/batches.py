"""Batches of labelled pictures, each worker's share of them, and the pass that reads every one.

The order of an epoch is a pure function of seed and epoch, whatever the batch size and however many
workers and devices share the work; and a picture's random numbers are a pure function of seed,
epoch and its place in that order. So a run can go on from any step as if it had never stopped.
"""

import os
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from zfkeras.data import images
from zfkeras.data.datasets import DatasetError, in_memory, without_autotuning

# Random numbers that come with every picture of an epoch, for whatever is drawn for it.
DRAWS = images.CROP_DRAWS + images.COLOUR_DRAWS
READ_AT_ONCE = 256


@dataclass(frozen=True)
class Share:
    """One worker's part of every batch: as large as any other worker's.

    Attributes:
        worker: Number of this worker, from 0.
        workers: How many there are.
        replicas: Devices of this worker, which share its part equally.
    """

    worker: int = 0
    workers: int = 1
    replicas: int = 1


WHOLE = Share()


def steps_per_epoch(count, batch_size):
    """How many batches hold every picture once; the last one may not be full."""
    return -(-count // batch_size)


def training_batches(pictures, batch_size, seed, epoch, first_step=0, share=WHOLE):
    """The batches of one epoch, without end.

    After `steps_per_epoch` batches only padding follows, so that no device ever has less to do
    than another.

    Args:
        pictures: `IndexedPictures` or `StreamedPictures`.
        batch_size: Pictures per batch over all workers; must divide among all their devices.
        seed, epoch: Decide the order and the random numbers.
        first_step: Number of batches to leave out, unread.
        share: Whose part of each batch to give.

    Returns:
        Dataset of `(images, labels, weights, draws)`, each one device's part of a batch: uint8
        `(part, side, side, 3)`, int32 `(part,)`, float32 `(part,)`, 1 for a picture and 0 for
        padding, and float32 `(part, DRAWS)` in [0, 1).
    """
    order = int(np.random.SeedSequence((seed, epoch)).generate_state(1)[0])

    def with_draws(position, image, label, weight):
        draws = tf.random.stateless_uniform((DRAWS,), tf.stack([order, position]))
        return image, label, weight, draws

    return _in_step(pictures, batch_size, order, first_step * batch_size, share, with_draws)


def evaluation_batches(pictures, batch_size, share=WHOLE):
    """Every picture once as stored, then padding without end.

    Args:
        pictures, batch_size, share: As in `training_batches`.

    Returns:
        Dataset of `(images, labels, weights)`, as there.
    """
    return _in_step(
        pictures, batch_size, None, 0, share, lambda _, image, label, weight: (image, label, weight)
    )


def numbered_batches(pictures, batch_size, first=0, share=WHOLE):
    """Every picture from one on and its number, but for those that cannot be read.

    Workers need not keep step: each has every so manieth picture and batches of its own.

    Args:
        pictures: As in `training_batches`.
        batch_size: Pictures per batch of this worker; must divide among its devices.
        first: Number of the first picture, as stored.
        share: Whose pictures to give.

    Returns:
        Dataset of `(images, numbers)`, as there and int64 `(part,)`; then padding without end,
        which has the number -1.
    """

    def own(numbered):
        if share.workers == 1:
            return numbered
        return numbered.filter(lambda number, _: number % share.workers == share.worker)

    def with_number(position, image, label, weight):
        return image, tf.where(weight > 0, position, -1)

    return _batches(
        pictures, own, batch_size, None, first, share, with_number, leave_out_unreadable=True
    )


def own_pictures(count, share):
    """Which pictures `numbered_batches` gives a worker: bool `(count,)`."""
    return np.arange(count) % share.workers == share.worker


def _in_step(pictures, batch_size, order, first, share, finish):
    """Batches that all workers take together, each its part of every one."""
    part = batch_size // share.workers

    def own(numbered):
        if share.workers == 1:
            return numbered
        return numbered.batch(part).shard(share.workers, share.worker).unbatch()

    return _batches(pictures, own, part, order, first, share, finish)


def _batches(pictures, own, batch_size, order, first, share, finish, leave_out_unreadable=False):
    """A worker's own of all numbered records, `batch_size` at a time for all of its devices."""
    records = pictures.records(order)
    padding = tf.nest.map_structure(
        lambda spec: tf.zeros(spec.shape, spec.dtype), records.element_spec
    )
    records = records.concatenate(tf.data.Dataset.from_tensors(padding).repeat())
    numbered = own(records.enumerate().skip(first))

    def read(position, record):
        key, label = record
        real = position < pictures.count
        side = pictures.side
        image = tf.cond(
            real, lambda: pictures.read(key), lambda: tf.zeros((side, side, 3), tf.uint8)
        )
        return finish(position, image, label, tf.cast(real, tf.float32))

    examples = numbered.map(read, num_parallel_calls=os.cpu_count())
    if leave_out_unreadable:
        examples = examples.ignore_errors()
    batches = examples.batch(batch_size // share.replicas, drop_remainder=True)
    return without_autotuning(batches.prefetch(2 * share.replicas))


def chosen_batches(pictures, numbers, batch_size):
    """Some pictures and their numbers, in the order that they are stored in.

    Args:
        pictures, batch_size: As in `training_batches`.
        numbers: int array, which pictures.

    Returns:
        Dataset of `(images, numbers)`, uint8 and int64; the last batch may be smaller.
    """
    wanted = np.zeros(pictures.count, bool)
    wanted[numbers] = True
    wanted = tf.constant(wanted)
    # Records that nobody wants are passed over unread.
    records = pictures.records().enumerate().filter(lambda number, record: wanted[number])
    examples = records.map(
        lambda number, record: (pictures.read(record[0]), number),
        num_parallel_calls=os.cpu_count(),
    )
    return without_autotuning(examples.batch(batch_size).prefetch(1))


@dataclass(frozen=True)
class Reading:
    """What one pass over a split found.

    Attributes:
        pictures: The split without what cannot be read, in memory if that was asked for.
        mean_image: float32 `(side, side, 3)`, the per-pixel mean.
        unreadable: Names of what cannot be read.
    """

    pictures: object
    mean_image: np.ndarray
    unreadable: tuple[str, ...]


def read_through(pictures, keep=False, on_batch=lambda count: None):
    """Reads every picture once.

    Args:
        pictures: `IndexedPictures` or `StreamedPictures`.
        keep: Whether to keep the pictures in memory.
        on_batch: Called with the number of pictures just read.

    Returns:
        A `Reading`.

    Raises:
        DatasetError: If no picture can be read.
    """
    side = pictures.side
    kept = np.empty((pictures.count, side, side, 3), np.uint8) if keep else None
    labels = np.empty(pictures.count, np.int32)
    readable = np.zeros(pictures.count, bool)
    total = np.zeros((side, side, 3), np.int64)

    def read(index, record):
        key, label = record
        return index, pictures.read(key), label

    examples = pictures.records().enumerate().map(read, num_parallel_calls=os.cpu_count())
    batches = examples.ignore_errors().batch(READ_AT_ONCE).prefetch(1)
    for indices, batch, batch_labels in without_autotuning(batches).as_numpy_iterator():
        readable[indices] = True
        labels[indices] = batch_labels
        # Whole numbers: the mean does not depend on the order of the sum, nor loses a digit.
        total += batch.sum(axis=0, dtype=np.int64)
        if keep:
            kept[indices] = batch
        on_batch(len(indices))
    if not readable.any():
        raise DatasetError(f"No picture of {pictures.source} can be read, of {pictures.count}.")
    mean_image = (total / readable.sum()).astype(np.float32)
    lost = np.flatnonzero(~readable)
    unreadable = tuple(pictures.name(index) for index in lost)
    if keep:
        if len(lost):
            kept, labels = kept[readable], labels[readable]
        pictures = in_memory(pictures, kept, labels)
    elif len(lost):
        pictures = pictures.without(lost)
    return Reading(pictures, mean_image, unreadable)
