"""The deconvnet: what in a picture made a unit fire (section 2.1).

A forward pass records the switches of every pooling layer. Then everything in one layer but a
single unit is set to zero and taken down again, layer by layer: unpooled to where the switches
point, rectified, filtered with the transposed filters, until it lies in pixel space. Biases and
contrast normalization play no part on the way down.

Cost: a plain forward pass per picture to find its strongest units, where they are not given; then
each unit goes up and down within its receptive field alone (`zfkeras.windows`). Memory is bounded
by `batch_size` pictures and projections at a time and by what is returned. Calling the model
takes whole pictures all the way, which is slower, needs no windows and can be exported.
"""

import dataclasses
from dataclasses import dataclass

import keras
import numpy as np
import tensorflow as tf

from zfkeras import ops, receptive_field
from zfkeras.architecture import Architecture, Block
from zfkeras.layers import ConvBlock, DeconvBlock
from zfkeras.windows import WindowedChain

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


@keras.saving.register_keras_serializable(package="zfkeras")
class Deconvnet(keras.Model):
    """The mirror of a network of `ConvBlock`s, on the same weights.

    Args:
        model: A Keras model whose input passes through a chain of `ConvBlock`s, such as a `ZFNet`.
            It is used as it is and never changed.
        overlap: Rule for switches shared by overlapping pooling windows: `"sum"` or `"max"`.

    Call arguments:
        inputs: Float tensor `(batch, height, width, 3)` as the model takes it.
        feature_maps: int tensor `(batch,)`: a feature map for each picture, whose strongest unit
            is projected. Negative numbers rank: -1 is the map with the strongest unit, -2 the
            next.
        layer: Name of the layer to project from; the highest one if None.

    Returns:
        A dictionary of tensors named like the arrays of `Projections`.

    Raises:
        ValueError: If the model has no `ConvBlock`, or the rule or layer is unknown.

    Reference:
        Zeiler & Fergus (2014), section 2.1.
    """

    def __init__(self, model, overlap="sum", **kwargs):
        super().__init__(**kwargs)
        ops.require_overlap_rule(overlap)
        self.model = model
        self.overlap = overlap
        self.conv_blocks = [layer for layer in model.layers if isinstance(layer, ConvBlock)]
        if not self.conv_blocks:
            raise ValueError(f"Expected a model with ConvBlock layers. Received: {model.name!r}.")
        self.geometry = Architecture(
            model.name,
            tuple(model.input_shape[1:3]),
            tuple(Block(block.name, block.stages) for block in self.conv_blocks),
            dense=(),
        )
        size, self.deconv_blocks = self.geometry.input_size, []
        for block in self.conv_blocks:
            # float32 whatever the model computes in: a projection is a chain of small sums.
            self.deconv_blocks.append(
                DeconvBlock(block, size, overlap, name=f"de{block.name}", dtype="float32")
            )
            size = block.map_sizes(size)[-1]
        self._traces = {}
        self.built = True

    @property
    def feature_layers(self):
        """Names of the layers that can be projected, lowest first."""
        return tuple(block.name for block in self.conv_blocks)

    def feature_map_counts(self):
        """`{layer: number of feature maps}`, lowest first."""
        return {layer: self._channels(self._depth(layer)) for layer in self.feature_layers}

    def window_size(self, layer):
        """Side of what a unit of a layer sees, in pixels."""
        return receptive_field.receptive_fields(self.geometry)[layer].size

    def rectified_maps(self, inputs, layers):
        """The rectified maps of several layers in one plain forward pass: `{layer: float32}`."""
        highest = max(map(self._depth, layers))
        maps, rectified = inputs, {}
        for depth, block in enumerate(self.conv_blocks[: highest + 1]):
            own = block.rectify(maps)
            if block.name in layers:
                rectified[block.name] = tf.cast(own, tf.float32)
            if depth < highest:
                maps = block.finish(own)
        return rectified

    def ascend(self, inputs, layer):
        """Forward pass up to a layer's rectified maps.

        Returns:
            The maps `(batch, height, width, channels)` in float32, and a list with the switches of
            every block below the layer (None where a block does not pool).
        """
        maps, switches = inputs, []
        for block in self.conv_blocks[: self._depth(layer)]:
            activations = block(maps, emit_switches=True)
            maps = activations["outputs"]
            switches.append(activations.get("switches"))
        top = self.conv_blocks[self._depth(layer)]
        rectified = top(maps, emit_switches=True)["rectified"]
        return tf.cast(rectified, tf.float32), switches

    def descend(self, signal, switches, layer):
        """Takes maps of a layer down to pixel space.

        Args:
            signal: float32 `(count, height, width, channels)`, shaped like the rectified maps.
            switches: What `ascend` gave, gathered so that row i belongs to signal i.
            layer: The layer that the signal lies on.

        Returns:
            float32 `(count, picture_height, picture_width, 3)`.
        """
        depth = self._depth(layer)
        signal = self.deconv_blocks[depth](signal)
        for block, block_switches in zip(
            reversed(self.deconv_blocks[:depth]), reversed(switches), strict=True
        ):
            signal = block(signal, block_switches)
        return signal

    def project_positions(self, maps, switches, owners, units, starts, layer):
        """Projects single units: everything else in their layer is set to zero.

        Args:
            maps: The layer's maps, only for their shape.
            switches: What `ascend` gave.
            owners: int `(count,)`, the picture of each unit.
            units: int `(count, 3)`: row, column, feature map.
            starts: float32 `(count,)`, the value that each unit is set to.
            layer: Name of the layer.
        """
        count = tf.shape(owners)[0]
        locations = tf.concat([tf.range(count)[:, None], tf.cast(units, tf.int32)], axis=1)
        signal = tf.scatter_nd(locations, starts, tf.stack([count, *maps.shape[1:]]))
        gathered = [
            None if block_switches is None else tf.gather(block_switches, owners)
            for block_switches in switches
        ]
        return self.descend(signal, gathered, layer)

    def call(self, inputs, feature_maps, layer=None):
        layer = layer or self.feature_layers[-1]
        owners = tf.range(tf.shape(feature_maps)[0])
        return self.project_owned(inputs, owners, feature_maps, layer)

    def project_owned(self, inputs, owners, feature_maps, layer):
        """As `call`, for several feature maps of one picture: `owners` says whose each one is."""
        maps, switches = self.ascend(inputs, layer)
        feature_maps, rows, columns = strongest_units(maps, owners, feature_maps)
        units = tf.stack([rows, columns, feature_maps], axis=1)
        activations = tf.gather_nd(maps, tf.concat([owners[:, None], units], axis=1))
        return {
            "feature_maps": feature_maps,
            "rows": rows,
            "columns": columns,
            "activations": activations,
            "boxes": self._spans(receptive_field.boxes, layer, rows, columns),
            "windows": self._spans(receptive_field.windows, layer, rows, columns),
            "projections": self.project_positions(
                maps, switches, owners, units, activations, layer
            ),
        }

    def project_units(
        self, inputs, layer, feature_maps, rows, columns, start="activation", batch_size=32
    ):
        """Projects one given unit of every picture.

        Args:
            inputs: Float array `(batch, height, width, 3)` as the model takes it.
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
        depth = self._depth(layer)
        height, width = receptive_field.feature_map_sizes(self.geometry)[layer]
        limits = {
            "feature_maps": (feature_maps, self._channels(depth)),
            "rows": (rows, height),
            "columns": (columns, width),
        }
        chosen = []
        for name, (values, limit) in limits.items():
            values = np.broadcast_to(np.asarray(values, np.int32), len(inputs))
            _require_range(name, values, 0, limit, layer)
            chosen.append(values)
        owners = np.arange(len(inputs), dtype=np.int32)
        feature_maps, rows, columns = chosen
        return self._project(inputs, layer, owners, feature_maps, rows, columns, start, batch_size)

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
            inputs: Float array `(batch, height, width, 3)` as the model takes it.
            layer: Name of the layer.
            pictures, feature_maps, rows, columns: int arrays `(count,)`: whose unit, and which.
            start, batch_size: As in `project_units`.

        Returns:
            `Projections` whose `projections` are `(count, size, size, 3)`, one receptive field
            each: what lies within the projection's line of `windows`, zero outside the picture.
        """
        inputs = self._as_inputs(inputs)
        if start not in START_VALUES:
            raise ValueError(
                f"`start` must be one of {', '.join(START_VALUES)}. Received: start={start!r}."
            )
        project, side = self._window_projector(layer, start)
        pictures, feature_maps, rows, columns = (
            np.asarray(part, np.int32) for part in (pictures, feature_maps, rows, columns)
        )
        units = np.stack([rows, columns, feature_maps], axis=1)
        activations = np.empty(len(units), np.float32)
        projections = np.empty((len(units), side, side, inputs.shape[-1]), np.float32)
        for first in range(0, len(units), batch_size):
            chunk = slice(first, first + batch_size)
            # Only the pictures of this chunk travel to the device.
            chosen, owners = np.unique(pictures[chunk], return_inverse=True)
            found = project(
                tf.constant(inputs[chosen]),
                tf.constant(owners, tf.int32),
                tf.constant(units[chunk]),
            )
            activations[chunk], projections[chunk] = found
        return Projections(
            layer=layer,
            pictures=pictures,
            feature_maps=feature_maps,
            rows=rows,
            columns=columns,
            activations=activations,
            boxes=self._spans(receptive_field.boxes, layer, rows, columns).numpy(),
            windows=self._spans(receptive_field.windows, layer, rows, columns).numpy(),
            projections=projections,
        )

    def project_feature_maps(self, inputs, layer, feature_maps, start="activation", batch_size=32):
        """Projects the strongest unit of given feature maps.

        Args:
            inputs: Float array `(batch, height, width, 3)` as the model takes it.
            layer: Name of the layer.
            feature_maps: int array `(batch, maps)`, or `(batch,)` for one map per picture.
                Negative numbers rank a picture's maps by their strongest unit, -1 the strongest.
            start, batch_size: As in `project_units`.

        Returns:
            `Projections`, picture by picture in the order given.
        """
        inputs = self._as_inputs(inputs)
        channels = self._channels(self._depth(layer))
        feature_maps = np.asarray(feature_maps, np.int32)
        if feature_maps.ndim not in (1, 2) or len(feature_maps) != len(inputs):
            raise ValueError(
                f"`feature_maps` must have one row for each of {len(inputs)} pictures. "
                f"Received: shape {feature_maps.shape}."
            )
        _require_range("feature_maps", feature_maps, -channels, channels, layer)
        feature_maps = feature_maps.reshape(len(inputs), -1)
        owners = np.repeat(np.arange(len(inputs), dtype=np.int32), feature_maps.shape[1])
        return self._project(
            inputs, layer, owners, feature_maps.ravel(), None, None, start, batch_size
        )

    def project_strongest(self, inputs, layer, top_k=9, start="activation", batch_size=32):
        """Projects each picture's `top_k` strongest feature maps, strongest first."""
        channels = self._channels(self._depth(layer))
        if not 1 <= top_k <= channels:
            raise ValueError(
                f"`top_k` of {layer} must lie between 1 and {channels}. Received: top_k={top_k}."
            )
        ranks = -np.arange(1, top_k + 1, dtype=np.int32)
        feature_maps = np.tile(ranks, (len(inputs), 1))
        return self.project_feature_maps(inputs, layer, feature_maps, start, batch_size)

    def get_config(self):
        return {
            "name": self.name,
            "model": keras.saving.serialize_keras_object(self.model),
            "overlap": self.overlap,
        }

    @classmethod
    def from_config(cls, config):
        model = keras.saving.deserialize_keras_object(config["model"])
        return cls(**{**config, "model": model})

    def _project(self, inputs, layer, owners, feature_maps, rows, columns, start, batch_size):
        if rows is None:
            feature_maps, rows, columns = self._find_strongest(
                inputs, layer, owners, feature_maps, batch_size
            )
        found = self.project_in_windows(
            inputs, layer, owners, feature_maps, rows, columns, start, batch_size
        )
        return dataclasses.replace(found, projections=_pasted(found, inputs.shape[1:]))

    def _find_strongest(self, inputs, layer, owners, feature_maps, batch_size):
        if ("strongest", layer) not in self._traces:

            def find(inputs, owners, feature_maps):
                maps = self.rectified_maps(inputs, [layer])[layer]
                return tf.stack(strongest_units(maps, owners, feature_maps))

            several = tf.TensorSpec((None,), tf.int32)
            self._traces["strongest", layer] = tf.function(
                find, (self._inputs_spec(), several, several), autograph=False
            ).get_concrete_function()
        find, found = self._traces["strongest", layer], np.empty((3, len(owners)), np.int32)
        for first in range(0, len(inputs), batch_size):
            own = np.flatnonzero((owners >= first) & (owners < first + batch_size))
            if len(own):
                batch = tf.constant(inputs[first : first + batch_size])
                whose = tf.constant(owners[own] - first)
                found[:, own] = find(batch, whose, tf.constant(feature_maps[own]))
        return found

    def _window_projector(self, layer, start):
        """A function of inputs, owners and units, and the side of its windows."""
        if (start, layer) not in self._traces:
            blocks = self.conv_blocks[: self._depth(layer) + 1]
            chain = WindowedChain(blocks, self.geometry, self.overlap)

            def project(inputs, owners, units):
                starts = None if start == "activation" else tf.ones_like(owners, tf.float32)
                windows = chain.cut(inputs, owners, units[:, 0], units[:, 1])
                return chain.project(windows, units, starts)

            signature = (
                self._inputs_spec(),
                tf.TensorSpec((None,), tf.int32),
                tf.TensorSpec((None, 3), tf.int32),
            )
            # Concrete, lest TensorFlow warns of one more network as of one more trace of the same.
            traced = tf.function(project, signature, autograph=False).get_concrete_function()
            self._traces[start, layer] = traced, chain.window_size
        return self._traces[start, layer]

    def _inputs_spec(self):
        return tf.TensorSpec((None, *self.model.input_shape[1:]), tf.float32)

    def _spans(self, geometry, layer, rows, columns):
        row_spans, column_spans = (
            tf.constant(spans, tf.int32) for spans in geometry(self.geometry, layer)
        )
        vertical, horizontal = tf.gather(row_spans, rows), tf.gather(column_spans, columns)
        return tf.stack(
            [vertical[:, 0], horizontal[:, 0], vertical[:, 1], horizontal[:, 1]], axis=1
        )

    def _depth(self, layer):
        if layer not in self.feature_layers:
            raise ValueError(
                f"`layer` must be one of {', '.join(self.feature_layers)}. "
                f"Received: layer={layer!r}."
            )
        return self.feature_layers.index(layer)

    def _channels(self, depth):
        shape = (None, *self.geometry.input_size, self.model.input_shape[-1])
        for block in self.conv_blocks[: depth + 1]:
            shape = block.compute_output_shape(shape)
        return shape[-1]

    def _as_inputs(self, inputs):
        inputs = np.asarray(inputs, np.float32)
        expected = tuple(self.model.input_shape[1:])
        if inputs.ndim != 4 or inputs.shape[1:] != expected or not len(inputs):
            raise ValueError(
                f"`inputs` must have shape (batch, {', '.join(map(str, expected))}). "
                f"Received: shape {inputs.shape}."
            )
        return inputs


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
    batch, height, width, channels = tf.shape(maps)[0], *maps.shape[1:]
    flat = tf.reshape(maps, (batch, height * width, channels))
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
        inside = part[max(-top, 0) : shape[0] - top, max(-left, 0) : shape[1] - left]
        whole[max(top, 0) : bottom, max(left, 0) : right] = inside
    return pasted


def _require_range(name, values, low, high, layer):
    if values.size and (values.min() < low or values.max() >= high):
        raise ValueError(
            f"`{name}` of {layer} must lie between {low} and {high - 1}. "
            f"Received: {sorted({int(v) for v in values.ravel() if not low <= v < high})[:5]}."
        )
