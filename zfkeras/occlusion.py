"""Occlusion sensitivity: what a square over each part of a picture changes (section 4.2, Figure 7).

A grey square goes over the picture. Where it hides what the network needs, the probability of the
class falls, and so does the activity of the feature map that sees it.

The paper gives neither the size of the square nor its step. In the figure the square is 50 pixels
wide and there are 30 positions each way on 224 pixels, which is a step of 6. Departure from the
paper: where the steps do not end at the border, the last position does, so that every pixel is
covered by some square.
"""

import dataclasses
import functools
import json
import logging
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow as tf

from zfkeras import ops
from zfkeras.data.images import centre_crop, fill_of
from zfkeras.features import find_layer
from zfkeras.fingerprint import fingerprint
from zfkeras.graph import Graph
from zfkeras.incremental import IncrementalPass
from zfkeras.writing import replacing

logger = logging.getLogger(__name__)

SIZE, STRIDE = 50 / 224, 6 / 224
# Windows are cut and put together again: where they are more of the maps than this, Figure 3's
# network is faster when it computes all of them.
LARGEST_SHARE = 0.7


@dataclass(frozen=True)
class Sensitivity:
    """What a square over each part of one picture makes of it.

    Attributes:
        rows, columns: int32 `(vertical,)` and `(horizontal,)`, first row and column of the square
            in pixels of the network's input.
        size: Side of the square.
        label: The class whose probability is of interest.
        layer, feature_map: The layer, and its map that is strongest by its sum in the picture as it
            is.
        probabilities: float32 `(vertical, horizontal, classes)`.
        activations: float32 `(vertical, horizontal)`, sum of the feature map over space.
        unoccluded_probabilities: float32 `(classes,)`, of the picture as it is.
        unoccluded_activation: float, sum of the feature map in the picture as it is.
        fingerprint: Of the picture, the network and the settings, as `Occluder.fingerprint` gives
            it; empty if unknown.
    """

    rows: np.ndarray
    columns: np.ndarray
    size: int
    label: int
    layer: str
    feature_map: int
    probabilities: np.ndarray
    activations: np.ndarray
    unoccluded_probabilities: np.ndarray
    unoccluded_activation: float
    fingerprint: str = ""

    @property
    def classes(self):
        """The most probable class at every position, int64 `(vertical, horizontal)`."""
        return self.probabilities.argmax(axis=2)

    def save(self, path, **more):
        """Writes all arrays, and more if given, into one `.npz` file."""
        with replacing(path) as beside:
            self.write(beside, **more)

    def write(self, file, **more):
        """As `save`, to a path or a binary file object, at once."""
        np.savez_compressed(file, **dataclasses.asdict(self), classes=self.classes, **more)


def load(path):
    """What `Sensitivity.save` wrote.

    Raises:
        ValueError: If it is damaged or something else.
        OSError: If it cannot be read.
    """
    try:
        with Path(path).open("rb") as file, np.load(file) as arrays:
            # Arrays of no dimension are numbers and texts.
            return Sensitivity(
                **{field.name: arrays[field.name][()] for field in dataclasses.fields(Sensitivity)}
            )
    except (EOFError, KeyError, TypeError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} does not hold what occlusion found.") from error


def positions(extent, size, stride, cover=True):
    """Where squares start along one side.

    Args:
        extent: Length of the side.
        size: Of the square.
        stride: From one square to the next.
        cover: Whether a last square ends at the border if the steps do not.

    Returns:
        int32 array, rising.

    Raises:
        ValueError: If the square does not fit or the stride is not positive.
    """
    if not 1 <= size <= extent:
        raise ValueError(f"`size` must lie between 1 and {extent}. Received: size={size}.")
    if stride < 1:
        raise ValueError(f"`stride` must be positive. Received: stride={stride}.")
    starts = np.arange(0, extent - size + 1, stride, dtype=np.int32)
    if cover and starts[-1] != extent - size:
        starts = np.append(starts, np.int32(extent - size))
    return starts


class Occluder:
    """Slides squares over pictures of one network.

    Args:
        trained: A `zfkeras.trained.Trained` network that gives probabilities.
        layer: Name of the layer whose strongest map is watched; if None the highest that has maps,
            rectified ones if there are any.
        size, stride: Of the square, in pixels; Figure 7's share of the longer side if None.
        cover: As in `positions`.
        incremental: Whether to compute only what a square can change, where that is less work.

    Raises:
        ValueError: If there is no such layer, or the square does not fit.
    """

    def __init__(self, trained, layer=None, size=None, stride=None, cover=True, incremental=True):
        self._trained = trained
        graph = Graph(trained.model, trained.input_size, front=trained.front)
        *extent, _ = graph.input_shape
        self.layer = find_layer(graph, layer or "last_maps")
        self.extent = tuple(extent)
        default = min(max(round(SIZE * max(extent)), 1), *extent)
        self.size = default if size is None else size
        stride = max(round(STRIDE * max(extent)), 1) if stride is None else stride
        self.rows, self.columns = (positions(side, self.size, stride, cover) for side in extent)
        self.names = trained.names
        self._mean_image = centre_crop(trained.mean_image, extent)
        self._maps, self._outputs = graph.tensors[self.layer], graph.outputs[0]
        self._all_rows = np.repeat(self.rows, len(self.columns))
        self._all_columns = np.tile(self.columns, len(self.rows))
        self._pass = IncrementalPass(
            graph, [self._maps, self._outputs], self._all_rows, self._all_columns, self.size
        )
        self.incremental = incremental and self._pass.share <= LARGEST_SHARE
        if incremental and not self.incremental:
            logger.debug(
                "%s: a square of %d pixels can change %.0f%% of the units, so all are computed.",
                trained.model.name,
                self.size,
                100 * self._pass.share,
            )
        self._look = tf.function(self._pass.unchanged, autograph=False)
        spec = tf.TensorSpec((1, *graph.input_shape), tf.float32)
        tensors = self._look.get_concrete_function(spec).structured_outputs
        if len(tensors[self._maps].shape) != 4:
            raise ValueError(f"Layer {self.layer!r} has no maps. Expected another one.")
        sweep = self._changed if self.incremental else self._whole
        self._sweep = tf.function(sweep, autograph=False, reduce_retracing=True)

    @property
    def count(self):
        """How many positions there are."""
        return len(self._all_rows)

    def strengths(self, seen):
        """The strongest activation of every map of the layer in a picture, float32 `(maps,)`."""
        maps = self._look(tf.constant(seen - self._mean_image)[None])[self._maps]
        return tf.reduce_max(tf.cast(maps, tf.float32), (0, 1, 2)).numpy()

    def slide(self, seen, value="gray", **options):
        """Slides the square over one picture as the network sees it.

        Args:
            seen: uint8 `(height, width, 3)`, of `Trained.prepare`.
            value: What the square shows, as in `zfkeras.data.images.fill_of`.
            options: As in a call.

        Returns:
            `Sensitivity`.
        """
        fill = fill_of(value, seen, self._mean_image, self.size)
        found = self(seen - self._mean_image, fill - self._mean_image, **options)
        mark = self.fingerprint(seen, value, options.get("label"))
        return dataclasses.replace(found, fingerprint=mark)

    def fingerprint(self, seen, value="gray", label=None):
        """Of all that decides what `slide` finds."""
        number = None if label is None else int(label)
        settings = [self.layer, self.size, value, number, self._trained.preprocessing]
        described = json.dumps(settings).encode()
        return fingerprint([self._of_network, described, self.rows, self.columns, seen])

    @functools.cached_property
    def _of_network(self):
        return self._trained.fingerprint().encode()

    def __call__(self, inputs, fill, label=None, batch_size=32, on_batch=lambda count: None):
        """Slides the square over the inputs of one picture.

        Args:
            inputs: float32 `(height, width, channels)` as the network takes it.
            fill: float32, shaped like `inputs` or `(channels,)`: what the square shows.
            label: The class of interest; the most probable one if None.
            batch_size: Positions at a time.
            on_batch: Called with the number of positions just done.

        Returns:
            `Sensitivity`.

        Raises:
            ValueError: If the network gives no probabilities.
        """
        inputs = tf.constant(inputs, tf.float32)
        fill = tf.broadcast_to(tf.constant(fill, tf.float32), inputs.shape)
        unchanged = self._look(inputs[None])
        probabilities = self._probabilities(unchanged[self._outputs]).numpy()[0]
        self._trained.require_probabilities(probabilities)
        sums = tf.reduce_sum(tf.cast(unchanged[self._maps], tf.float32), (1, 2)).numpy()[0]
        feature_map = int(sums.argmax())
        count = len(self._all_rows)
        found = np.empty((count, len(probabilities)), np.float32)
        activations = np.empty(count, np.float32)
        for first in range(0, count, batch_size):
            which = np.arange(first, min(first + batch_size, count), dtype=np.int32)
            found[which], activations[which] = self._sweep(
                inputs, fill, unchanged, tf.constant(which), tf.constant(feature_map)
            )
            on_batch(len(which))
        shape = len(self.rows), len(self.columns)
        return Sensitivity(
            rows=self.rows,
            columns=self.columns,
            size=self.size,
            label=int(probabilities.argmax()) if label is None else label,
            layer=self.layer,
            feature_map=feature_map,
            probabilities=found.reshape(*shape, -1),
            activations=activations.reshape(shape),
            unoccluded_probabilities=probabilities,
            unoccluded_activation=float(sums[feature_map]),
        )

    def _whole(self, inputs, fill, unchanged, which, feature_map):
        """Whole passes over the picture, each with its square."""
        hidden = [
            (tf.range(extent) >= start[:, None]) & (tf.range(extent) < start[:, None] + self.size)
            for start, extent in zip(self._starts(which), inputs.shape[:2], strict=True)
        ]
        mask = hidden[0][:, :, None, None] & hidden[1][:, None, :, None]
        tensors = self._pass.unchanged(tf.where(mask, fill, inputs))
        maps = tf.cast(tensors[self._maps], tf.float32)[..., feature_map]
        return self._probabilities(tensors[self._outputs]), tf.reduce_sum(maps, (1, 2))

    def _changed(self, inputs, fill, unchanged, which, feature_map):
        """Only what the squares can change."""
        places = [start[:, None] + tf.range(self.size) for start in self._starts(which)]
        squares = ops.cut_windows(fill[None], tf.zeros_like(which), *places)
        tensors = self._pass.run(unchanged, squares, which)
        maps = tf.cast(tensors[self._maps], tf.float32)[..., feature_map, None]
        as_it_was = tf.cast(unchanged[self._maps], tf.float32)[..., feature_map, None]
        sums = tf.reduce_sum(maps, (1, 2, 3))
        places = self._pass.places(self._maps, which)
        if places is not None:
            before = ops.cut_windows(as_it_was, tf.zeros_like(which), *places)
            sums += tf.reduce_sum(as_it_was) - tf.reduce_sum(before, (1, 2, 3))
        return self._probabilities(tensors[self._outputs]), sums

    def _starts(self, which):
        return [
            tf.gather(tf.constant(starts, tf.int32), which)
            for starts in (self._all_rows, self._all_columns)
        ]

    def _probabilities(self, outputs):
        return self._trained.probabilities(tf.cast(outputs, tf.float32))
