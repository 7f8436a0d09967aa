"""Max pooling that remembers where its maxima lay."""

import keras

from zfkeras import ops
from zfkeras.architecture import Block, Pooling


@keras.saving.register_keras_serializable(package="zfkeras")
class SwitchedMaxPooling2D(keras.layers.Layer):
    """Max pooling with ceil rounding that also returns its switches.

    `tf.nn.max_pool_with_argmax` costs many times plain max pooling on a CPU and has no XLA kernel:
    use this layer only where something is unpooled later.

    Args:
        pool_size: Side of the pooling window.
        strides: Step between windows.

    Call arguments:
        maps: Float tensor `(batch, height, width, channels)`.

    Returns:
        `(pooled, switches)`, both `(batch, pooled_height, pooled_width, channels)`; switches are
        int64 flat indices `(row * width + column) * channels + channel`.

    Reference:
        Zeiler & Fergus (2014), section 2.1, "Unpooling".
    """

    def __init__(self, pool_size=3, strides=2, **kwargs):
        super().__init__(**kwargs)
        if not 1 <= strides <= pool_size:
            raise ValueError(
                "`strides` must lie between 1 and `pool_size`, or units would be lost. "
                f"Received: pool_size={pool_size}, strides={strides}."
            )
        self.pool_size = pool_size
        self.strides = strides
        self.supports_jit = False

    def call(self, maps):
        return ops.max_pool_with_switches(maps, self.pool_size, self.strides)

    def compute_output_spec(self, maps):
        block = Block(self.name, (Pooling(self.pool_size, self.strides),))
        height, width = block.map_sizes(maps.shape[1:3])[-1]
        shape = (maps.shape[0], height, width, maps.shape[3])
        return keras.KerasTensor(shape, maps.dtype), keras.KerasTensor(shape, "int64")

    def get_config(self):
        return {**super().get_config(), "pool_size": self.pool_size, "strides": self.strides}
