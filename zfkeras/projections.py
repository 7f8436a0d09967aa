"""Projections of units, and what every deconvnet offers to make them.

A deconvnet tells how a unit goes up and down (`zfkeras.deconvnet` for networks of `ConvBlock`s,
`zfkeras.mirror` for any Keras model); which units, in what batches, is the same for all.

Memory is bounded by `batch_size` pictures and projections at a time and by what is returned.
"""

import dataclasses
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

START_VALUES = ("activation", "one")


@dataclass(frozen=True)
class Projections:
    """Projections of units of one layer. Every array's first axis is the projection.

    Attributes:
        layer: Name of the layer.
        pictures: int, index of the picture within the batch.
        feature_maps: int, feature map of each unit.
        rows, columns: int, position of each unit in its feature map.
        activations: float32, value of each unit.
        boxes: int `(count, 4)`: top, left, bottom, right of the pixels that the unit sees in the
            network's input; bottom and right exclusive, cut off where the picture ends.
        windows: int `(count, 4)`: the unit's full receptive field, which may reach past the border.
        projections: float32 `(count, height, width, 3)`, in pixel space. Zero where silent.
    """

    layer: str
    pictures: np.ndarray
    feature_maps: np.ndarray
    rows: np.ndarray
    columns: np.ndarray
    activations: np.ndarray
    boxes: np.ndarray
    windows: np.ndarray
    projections: np.ndarray

    def __len__(self):
        return len(self.projections)

    def save(self, path, **more):
        """Writes all arrays, and more if given, into one `.npz` file."""
        np.savez_compressed(path, **dataclasses.asdict(self), **more)


@dataclass(frozen=True)
class Spans:
    """Pixels that the units of a layer see, as `(row_spans, column_spans)`.

    Each is an int array `(height, 2)` or `(width, 2)` of the layer's maps: the first pixel and the
    one after the last.

    Attributes:
        boxes: What a unit sees of the picture.
        windows: Its full receptive field, all of one size, which may reach past the picture.
    """

    boxes: tuple
    windows: tuple


class Projector:
    """Chooses units and projects them, in batches.

    What inherits from it has

    `input_shape`
        `(height, width, channels)` of a picture.
    `feature_layers`
        Names of the layers to look at, lowest first.
    `feature_map_counts()`
        `{layer: number of feature maps}` of those layers.
    `feature_map_count(layer)`, `map_size(layer)`, `spans(layer)`
        Of any layer that can be projected: a number, `(height, width)` of its maps, and `Spans`;
        a ValueError if it is not one.
    `rectified_maps(inputs, layers)`
        The maps of several layers in one plain forward pass: `{layer: float32 (batch, height,
        width, channels)}`.
    `window_projection(layer)`
        A function of inputs, owners int32 `(count,)`, units int32 `(count, 3)` (row, column,
        feature map), and starts float32 `(count,)` or None for the activations, to activations and
        to projections `(count, *window_size(layer), channels)`.
    """

    def window_size(self, layer):
        """`(height, width)` of what a unit of a layer sees, in pixels."""
        return tuple(int(spans[0, 1] - spans[0, 0]) for spans in self.spans(layer).windows)

    def project_units(
        self, inputs, layer, feature_maps, rows, columns, start="activation", batch_size=32
    ):
        """Projects one given unit of every picture.

        Args:
            inputs: Float array `(batch, height, width, channels)` as the model takes it.
            layer: Name of the layer.
            feature_maps, rows, columns: int arrays `(batch,)`, or one number for all pictures.
            start: `"activation"`, the unit's own value, or `"one"`. The paper takes the activation;
                a projection is proportional to a positive start, so only its scale changes.
            batch_size: How many projections descend together.

        Returns:
            `Projections`, one per picture.

        Raises:
            ValueError: If the layer is unknown or a unit lies outside it.
        """
        inputs = self._as_inputs(inputs)
        height, width = self.map_size(layer)
        limits = {
            "feature_maps": (feature_maps, self.feature_map_count(layer)),
            "rows": (rows, height),
            "columns": (columns, width),
        }
        chosen = []
        for name, (values, limit) in limits.items():
            values = np.broadcast_to(np.asarray(values, np.int32), len(inputs))
            _require_range(name, values, 0, limit, layer)
            chosen.append(values)
        owners = np.arange(len(inputs), dtype=np.int32)
        found = self.project_in_windows(inputs, layer, owners, *chosen, start, batch_size)
        return _pasted(found, inputs.shape[1:])

    def project_feature_maps(self, inputs, layer, feature_maps, start="activation", batch_size=32):
        """Projects the strongest unit of given feature maps.

        Args:
            inputs: Float array `(batch, height, width, channels)` as the model takes it.
            layer: Name of the layer.
            feature_maps: int array `(batch, maps)`, or `(batch,)` for one map per picture.
                Negative numbers rank a picture's maps by their strongest unit, -1 the strongest.
            start, batch_size: As in `project_units`.

        Returns:
            `Projections`, picture by picture in the order given.
        """
        inputs = self._as_inputs(inputs)
        channels = self.feature_map_count(layer)
        feature_maps = np.asarray(feature_maps, np.int32)
        if feature_maps.ndim not in (1, 2) or len(feature_maps) != len(inputs):
            raise ValueError(
                f"`feature_maps` must have one row for each of {len(inputs)} pictures. "
                f"Received: shape {feature_maps.shape}."
            )
        _require_range("feature_maps", feature_maps, -channels, channels, layer)
        feature_maps = feature_maps.reshape(len(inputs), -1)
        owners = np.repeat(np.arange(len(inputs), dtype=np.int32), feature_maps.shape[1])
        found = self._search(inputs, layer, owners, feature_maps.ravel(), start, batch_size)
        return _pasted(found, inputs.shape[1:])

    def project_strongest(self, inputs, layer, top_k=9, start="activation", batch_size=32):
        """Projects each picture's `top_k` strongest feature maps, strongest first."""
        channels = self.feature_map_count(layer)
        if not 1 <= top_k <= channels:
            raise ValueError(
                f"`top_k` of {layer} must lie between 1 and {channels}. Received: top_k={top_k}."
            )
        ranks = -np.arange(1, top_k + 1, dtype=np.int32)
        feature_maps = np.tile(ranks, (len(inputs), 1))
        return self.project_feature_maps(inputs, layer, feature_maps, start, batch_size)

    def project_in_windows(
        self,
        inputs,
        layer,
        pictures,
        feature_maps,
        rows,
        columns,
        start="activation",
        batch_size=32,
    ):
        """Projects given units, however many of each picture, and gives only what they see.

        Args:
            inputs: Float array `(batch, height, width, channels)` as the model takes it.
            layer: Name of the layer.
            pictures, feature_maps, rows, columns: int arrays `(count,)`: whose unit, and which.
            start, batch_size: As in `project_units`.

        Returns:
            `Projections` whose `projections` are `(count, *window_size(layer), channels)`, one
            receptive field each: what lies within the projection's line of `windows`, zero outside
            the picture.
        """
        inputs = self._as_inputs(inputs)
        require_start(start)
        project = self._traced_projection(layer, start)
        pictures, feature_maps, rows, columns = (
            np.asarray(part, np.int32) for part in (pictures, feature_maps, rows, columns)
        )
        units = np.stack([rows, columns, feature_maps], axis=1)
        activations = np.empty(len(units), np.float32)
        shape = (len(units), *self.window_size(layer), inputs.shape[-1])
        projections = np.empty(shape, np.float32)
        for first in range(0, len(units), batch_size):
            chunk = slice(first, first + batch_size)
            # Only the pictures of this chunk travel to the device.
            chosen, owners = np.unique(pictures[chunk], return_inverse=True)
            activations[chunk], projections[chunk] = project(
                tf.constant(inputs[chosen]),
                tf.constant(owners, tf.int32),
                tf.constant(units[chunk]),
            )
        return self._described(
            layer, pictures, feature_maps, rows, columns, activations, projections
        )

    def _described(self, layer, pictures, feature_maps, rows, columns, activations, projections):
        """Projections in windows, with what these units see."""
        spans = self.spans(layer)
        return Projections(
            layer=layer,
            pictures=pictures,
            feature_maps=feature_maps,
            rows=rows,
            columns=columns,
            activations=activations,
            boxes=corners(spans.boxes, rows, columns).numpy(),
            windows=corners(spans.windows, rows, columns).numpy(),
            projections=projections,
        )

    def _search(self, inputs, layer, owners, feature_maps, start, batch_size):
        """Projects the strongest units of feature maps, within windows."""
        units = self._find_strongest(inputs, layer, owners, feature_maps, batch_size)
        return self.project_in_windows(inputs, layer, owners, *units, start, batch_size)

    def _find_strongest(self, inputs, layer, owners, feature_maps, batch_size):
        def find(inputs, owners, feature_maps):
            maps = self.rectified_maps(inputs, [layer])[layer]
            return tf.stack(strongest_units(maps, owners, feature_maps))

        several = tf.TensorSpec((None,), tf.int32)
        traced = self._traced(("strongest", layer), lambda: find, (several, several))
        found = np.empty((3, len(owners)), np.int32)
        for first in range(0, len(inputs), batch_size):
            own = np.flatnonzero((owners >= first) & (owners < first + batch_size))
            if len(own):
                batch = tf.constant(inputs[first : first + batch_size])
                whose = tf.constant(owners[own] - first)
                found[:, own] = traced(batch, whose, tf.constant(feature_maps[own]))
        return found

    def _traced_projection(self, layer, start):
        def build():
            project = self.window_projection(layer)
            if start == "activation":
                return project
            return lambda inputs, owners, units: project(
                inputs, owners, units, tf.ones_like(owners, tf.float32)
            )

        signature = tf.TensorSpec((None,), tf.int32), tf.TensorSpec((None, 3), tf.int32)
        return self._traced((start, layer), build, signature)

    def _traced(self, key, build, signature):
        """What `build` gives, a function of inputs and more, compiled the first time."""
        traces = self.__dict__.setdefault("_projector_traces", {})
        if key not in traces:
            inputs = tf.TensorSpec((None, *self.input_shape), tf.float32)
            # Concrete, lest TensorFlow warns of one more network as of one more trace of the same.
            traces[key] = tf.function(
                build(), (inputs, *signature), autograph=False
            ).get_concrete_function()
        return traces[key]

    def _as_inputs(self, inputs):
        inputs, expected = np.asarray(inputs, np.float32), tuple(self.input_shape)
        if inputs.ndim != 4 or inputs.shape[1:] != expected or not len(inputs):
            raise ValueError(
                f"`inputs` must have shape (batch, {', '.join(map(str, expected))}). "
                f"Received: shape {inputs.shape}."
            )
        return inputs


def corners(spans, rows, columns):
    """Boxes or windows of units: int32 `(count, 4)`, top, left, bottom, right.

    Args:
        spans: `(row_spans, column_spans)`, as of `Spans`.
        rows, columns: int `(count,)`, position of each unit in its feature map.
    """
    row_spans, column_spans = (tf.constant(one, tf.int32) for one in spans)
    vertical, horizontal = tf.gather(row_spans, rows), tf.gather(column_spans, columns)
    return tf.stack([vertical[:, 0], horizontal[:, 0], vertical[:, 1], horizontal[:, 1]], axis=1)


def strongest_units(maps, owners, feature_maps):
    """Where the strongest unit of each chosen feature map lies.

    Among equal values the first unit in reading order wins, and the lower feature map.

    Args:
        maps: Float tensor `(batch, height, width, channels)`.
        owners: int32 `(count,)`, the picture of each choice.
        feature_maps: int32 `(count,)`; -1 is the picture's map with the strongest unit, -2 the
            next one, and so on.

    Returns:
        int32 `(feature_maps, rows, columns)`, each `(count,)`, the ranks resolved.
    """
    height, width = maps.shape[1:3]
    flat = tf.reshape(maps, (tf.shape(maps)[0], height * width, tf.shape(maps)[3]))
    ranking = tf.argsort(tf.reduce_max(flat, axis=1), direction="DESCENDING", stable=True)
    ranks = tf.maximum(-feature_maps - 1, 0)
    ranked = tf.gather_nd(ranking, tf.stack([owners, ranks], axis=1))
    feature_maps = tf.where(feature_maps < 0, ranked, feature_maps)
    strongest = tf.argmax(flat, axis=1, output_type=tf.int32)
    positions = tf.gather_nd(strongest, tf.stack([owners, feature_maps], axis=1))
    return feature_maps, positions // width, positions % width


def _pasted(found, shape):
    """Projections in windows, each put where it belongs in a picture of zeros."""
    pasted = np.zeros((len(found), *shape), np.float32)
    for whole, part, (top, left, bottom, right) in zip(
        pasted, found.projections, found.windows, strict=True
    ):
        # A unit of padding sees nothing of the picture.
        up, down = max(top, 0), max(min(bottom, shape[0]), 0)
        near, far = max(left, 0), max(min(right, shape[1]), 0)
        if up < down and near < far:
            whole[up:down, near:far] = part[up - top : down - top, near - left : far - left]
    return dataclasses.replace(found, projections=pasted)


def require_start(start):
    """Raises ValueError unless `start` is one of `START_VALUES`."""
    if start not in START_VALUES:
        raise ValueError(
            f"`start` must be one of {', '.join(START_VALUES)}. Received: start={start!r}."
        )


def _require_range(name, values, low, high, layer):
    if values.size and (values.min() < low or values.max() >= high):
        raise ValueError(
            f"`{name}` of {layer} must lie between {low} and {high - 1}. "
            f"Received: {sorted({int(v) for v in values.ravel() if not low <= v < high})[:5]}."
        )
