"""The deconvnet: what in a picture made a unit fire (section 2.1).

A forward pass records the switches of every pooling layer. Then everything in one layer but a
single unit is set to zero and taken down again, layer by layer: unpooled to where the switches
point, rectified, filtered with the transposed filters, until it lies in pixel space. Biases and
contrast normalization play no part on the way down.

Cost: a plain forward pass per picture to find its strongest units, where they are not given; then
each unit goes up and down within its receptive field alone (`zfkeras.windows`). Calling the model
takes whole pictures all the way, which is slower, needs no windows and can be exported.
"""

import keras
import numpy as np
import tensorflow as tf

from zfkeras import ops, receptive_field
from zfkeras.architecture import Architecture, Block
from zfkeras.layers import ConvBlock, DeconvBlock
from zfkeras.projections import Projector, Spans, corners, require_start, strongest_units
from zfkeras.windows import WindowedChain


@keras.saving.register_keras_serializable(package="zfkeras")
class Deconvnet(Projector, keras.Model):
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
        below = model.layers[: model.layers.index(self.conv_blocks[-1])]
        for layer in below:
            if not isinstance(layer, ConvBlock | keras.layers.InputLayer):
                raise ValueError(
                    f"Expected a chain of ConvBlock layers; zfkeras.mirror takes other models. "
                    f"Received: {model.name!r} with layer {layer.name!r} ({type(layer).__name__})."
                )
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
        self.built = True

    @property
    def feature_layers(self):
        """Names of the layers that can be projected, lowest first."""
        return tuple(block.name for block in self.conv_blocks)

    @property
    def input_shape(self):
        """`(height, width, 3)` of the model's pictures."""
        return tuple(self.model.input_shape[1:])

    def feature_map_counts(self):
        """`{layer: number of feature maps}`, lowest first."""
        return {layer: self.feature_map_count(layer) for layer in self.feature_layers}

    def feature_map_count(self, layer):
        """How many feature maps a layer has."""
        shape = (None, *self.input_shape)
        for block in self.conv_blocks[: self._depth(layer) + 1]:
            shape = block.compute_output_shape(shape)
        return shape[-1]

    def map_size(self, layer):
        """`(height, width)` of a layer's rectified maps."""
        self._depth(layer)
        return receptive_field.feature_map_sizes(self.geometry)[layer]

    def spans(self, layer):
        """What the units of a layer see, `Spans`."""
        self._depth(layer)
        return Spans(
            receptive_field.boxes(self.geometry, layer),
            receptive_field.windows(self.geometry, layer),
        )

    def window_projection(self, layer):
        """Within windows (`zfkeras.windows`); see `Projector`."""
        chain = self._chain(layer)

        def project(inputs, owners, units, starts=None):
            windows = chain.cut(inputs, owners, units[:, 0], units[:, 1])
            return chain.project(windows, units, starts)

        return project

    def _chain(self, layer):
        blocks = self.conv_blocks[: self._depth(layer) + 1]
        return WindowedChain(blocks, self.geometry, self.feature_map_count(layer), self.overlap)

    def _search(self, inputs, layer, owners, feature_maps, start, batch_size):
        """As `Projector._search`, but that nothing goes up twice: windows are cut from the maps
        that the search has made, and of the layer itself it makes no maps that nobody asked for."""
        require_start(start)
        each = len(owners) // len(inputs)
        if each > batch_size:
            return super()._search(inputs, layer, owners, feature_maps, start, batch_size)
        ranked = bool((feature_maps < 0).any())
        filtering = self.conv_blocks[self._depth(layer)].filtering
        all_maps = ranked or filtering is None or filtering.groups > 1
        several = tf.TensorSpec((None,), tf.int32)
        search = self._traced(
            ("search", layer, all_maps, start),
            lambda: self._searching(layer, all_maps, start),
            (several, several, several),
        )
        pictures, parts = max(batch_size // each, 1), []
        for first in range(0, len(inputs), pictures):
            own = slice(first * each, (first + pictures) * each)
            chosen, which = np.unique(feature_maps[own], return_inverse=True)
            parts.append(
                search(
                    tf.constant(inputs[first : first + pictures]),
                    tf.constant(owners[own] - first),
                    tf.constant(feature_maps[own] if all_maps else which.astype(np.int32)),
                    tf.constant(chosen),
                )
            )
        units, activations, projections = (
            np.concatenate(part) for part in zip(*parts, strict=True)
        )
        rows, columns, feature_maps = units.T
        return self._described(layer, owners, feature_maps, rows, columns, activations, projections)

    def _searching(self, layer, all_maps, start):
        chain = self._chain(layer)

        def search(inputs, owners, feature_maps, chosen):
            maps, whole = chain.ascend_whole(inputs, None if all_maps else chosen)
            found, rows, columns = strongest_units(maps, owners, feature_maps)
            places = tf.stack([owners, rows, columns, found], axis=1)
            activations = tf.gather_nd(maps, places)
            if not all_maps:
                found = tf.gather(chosen, found)
            units = tf.stack([rows, columns, found], axis=1)
            starts = activations if start == "activation" else tf.ones_like(activations)
            return units, activations, chain.project_below(whole, owners, units, starts)

        return search

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
        spans = self.spans(layer)
        return {
            "feature_maps": feature_maps,
            "rows": rows,
            "columns": columns,
            "activations": activations,
            "boxes": corners(spans.boxes, rows, columns),
            "windows": corners(spans.windows, rows, columns),
            "projections": self.project_positions(
                maps, switches, owners, units, activations, layer
            ),
        }

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

    def _depth(self, layer):
        if layer not in self.feature_layers:
            raise ValueError(
                f"`layer` must be one of {', '.join(self.feature_layers)}. "
                f"Received: layer={layer!r}."
            )
        return self.feature_layers.index(layer)
