"""One layer of the paper's networks: filtering, rectification, pooling, contrast normalization."""

import keras

from zfkeras import ops
from zfkeras.architecture import (
    Block,
    Contrast,
    Filtering,
    Pooling,
    Rectification,
    stage_data,
    stage_from_data,
)
from zfkeras.layers.contrast import LocalResponseNormalization
from zfkeras.layers.pooling import SwitchedMaxPooling2D


@keras.saving.register_keras_serializable(package="zfkeras")
class ConvBlock(keras.layers.Layer):
    """Filtering, rectification, max pooling and contrast normalization, any of them left out.

    Pools without recording switches, as training and plain inference need, unless asked for them.

    Args:
        stages: `zfkeras.architecture` stages in the order they act: at most one of each kind,
            filtering before rectification, and both before pooling and contrast normalization,
            which may come in either order.
        kernel_initializer: Initializer of the filters.
        kernel_constraint: Constraint on the filters, such as `zfkeras.constraints.FilterRMS`.

    Call arguments:
        maps: Float tensor `(batch, height, width, channels)`.
        emit_switches: Also return what a deconvnet needs to come back.

    Returns:
        The block's maps; with `emit_switches` a dictionary of `outputs` (the same maps),
        `rectified` (the maps before pooling and contrast normalization) and, if the block pools,
        `switches` (int64, see `SwitchedMaxPooling2D`).

    Raises:
        ValueError: If the stages come in an order that the block does not know.

    Reference:
        Zeiler & Fergus (2014), section 2 and Figure 3.
    """

    def __init__(
        self,
        stages,
        kernel_initializer="glorot_uniform",
        kernel_constraint=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.stages = tuple(
            stage_from_data(stage) if isinstance(stage, dict) else stage for stage in stages
        )
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.kernel_constraint = keras.constraints.get(kernel_constraint)
        self._block = Block(self.name, self.stages)
        self._require_order()
        pooling, contrast = self._block.stage(Pooling), self._block.stage(Contrast)
        # The parts see a block's mixed precision through its dtype policy.
        self.pooling = pooling and SwitchedMaxPooling2D(
            pooling.size, pooling.strides, dtype=self.dtype_policy
        )
        self.contrast = contrast and LocalResponseNormalization(
            contrast.radius, contrast.bias, contrast.alpha, contrast.beta, dtype=self.dtype_policy
        )

    @property
    def filtering(self):
        """The `Filtering` stage, or None."""
        return self._block.stage(Filtering)

    @property
    def rectification(self):
        """The `Rectification` stage, or None."""
        return self._block.stage(Rectification)

    def rectified_size(self, size):
        """`(height, width)` of the maps before pooling and contrast normalization."""
        return self._block.rectified_size(size)

    def map_sizes(self, size):
        """`(height, width)` before the first stage and after each, for maps of this size."""
        return self._block.map_sizes(size)

    def build(self, input_shape):
        self.map_sizes(input_shape[1:3])
        self.kernel = self.bias = None
        if self.filtering:
            filtering = self.filtering
            channels = input_shape[-1]
            if channels % filtering.groups or filtering.maps % filtering.groups:
                raise ValueError(
                    f"Layer {self.name!r} splits into {filtering.groups} groups, which must divide "
                    f"its maps. Received: {channels} maps coming in, {filtering.maps} going out."
                )
            side = filtering.kernel_size
            self.kernel = self.add_weight(
                shape=(side, side, channels // filtering.groups, filtering.maps),
                initializer=self.kernel_initializer,
                constraint=self.kernel_constraint,
                name="kernel",
            )
            self.bias = self.add_weight(shape=(filtering.maps,), initializer="zeros", name="bias")
        self.built = True

    def call(self, maps, emit_switches=False):
        rectified = self.rectify(maps)
        if not emit_switches:
            return self.finish(rectified)
        outputs, activations = rectified, {"rectified": rectified}
        for stage in self.stages:
            if isinstance(stage, Contrast):
                outputs = self.contrast(outputs)
            elif isinstance(stage, Pooling):
                outputs, activations["switches"] = self.pooling(outputs)
        return {"outputs": outputs, **activations}

    def rectify(self, maps):
        """Filters and rectifies: the block's maps before pooling and contrast normalization."""
        maps = keras.ops.cast(maps, self.compute_dtype)
        if self.filtering:
            kernel = keras.ops.cast(self.kernel, self.compute_dtype)
            bias = keras.ops.cast(self.bias, self.compute_dtype)
            strides, padding = self.filtering.strides, self.filtering.padding
            maps = ops.filter_maps(maps, kernel, bias, strides, padding)
        return keras.ops.relu(maps) if self.rectification else maps

    def finish(self, rectified):
        """Pools and normalizes what `rectify` gave, without switches."""
        maps = rectified
        for stage in self.stages:
            if isinstance(stage, Contrast):
                maps = self.contrast(maps)
            elif isinstance(stage, Pooling):
                maps = ops.max_pool(maps, stage.size, stage.strides)
        return maps

    def compute_output_shape(self, maps_shape):
        channels = self.filtering.maps if self.filtering else maps_shape[-1]
        return (maps_shape[0], *self.map_sizes(maps_shape[1:3])[-1], channels)

    def compute_output_spec(self, maps, emit_switches=False):
        shape = self.compute_output_shape(maps.shape)
        outputs = keras.KerasTensor(shape, self.compute_dtype)
        if not emit_switches:
            return outputs
        rectified = (shape[0], *self.rectified_size(maps.shape[1:3]), shape[-1])
        spec = {
            "outputs": outputs,
            "rectified": keras.KerasTensor(rectified, self.compute_dtype),
        }
        return {**spec, "switches": keras.KerasTensor(shape, "int64")} if self.pooling else spec

    def get_config(self):
        return {
            **super().get_config(),
            "stages": [stage_data(stage) for stage in self.stages],
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "kernel_constraint": keras.constraints.serialize(self.kernel_constraint),
        }

    def _require_order(self):
        kinds = [type(stage) for stage in self.stages]
        first = [kind for kind in (Filtering, Rectification) if kind in kinds]
        rest = kinds[len(first) :]
        if kinds[: len(first)] != first or not set(rest) <= {Pooling, Contrast}:
            ordered = False
        else:
            ordered = len(set(rest)) == len(rest)
        if not ordered or not kinds:
            raise ValueError(
                "`stages` must be filtering, rectification, then pooling and contrast "
                "normalization in either order, each at most once. "
                f"Received: stages={[kind.__name__ for kind in kinds]}."
            )
