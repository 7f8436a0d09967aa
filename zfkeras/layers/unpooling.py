"""The inverse of max pooling, as far as it has one."""

import keras

from zfkeras import ops


@keras.saving.register_keras_serializable(package="zfkeras")
class MaxUnpooling2D(keras.layers.Layer):
    """Places every pooled value back at the location it was taken from.

    Max pooling forgets where in its window the maximum lay; the switches remember. Every location
    that no switch points to becomes zero.

    Args:
        output_size: `(height, width)` of the feature map that was pooled, in units of that map.
        overlap: `"sum"` adds the values that share a switch, which makes the layer the adjoint of
            the pooling that recorded its switches; `"max"` keeps the largest of them.

    Call arguments:
        pooled: Float tensor `(batch, pooled_height, pooled_width, channels)`.
        switches: int64 tensor shaped like `pooled`. Each entry is the flat index
            `(row * width + column) * channels + channel` of a maximum in the map that was pooled.

    Output shape:
        `(batch, height, width, channels)`.

    Raises:
        ValueError: If `output_size` is not two positive integers or `overlap` is not a rule.

    Reference:
        Zeiler & Fergus (2014), section 2.1, "Unpooling".
    """

    def __init__(self, output_size, overlap="sum", **kwargs):
        super().__init__(**kwargs)
        if len(output_size) != 2 or min(output_size) < 1:
            raise ValueError(
                f"`output_size` must be two positive integers. Received: output_size={output_size}."
            )
        ops.require_overlap_rule(overlap)
        self.output_size = tuple(output_size)
        self.overlap = overlap
        self.supports_jit = False

    def call(self, pooled, switches):
        return ops.max_unpool(pooled, switches, self.output_size, self.overlap)

    def compute_output_shape(self, pooled_shape, switches_shape):
        return (pooled_shape[0], *self.output_size, pooled_shape[-1])

    def get_config(self):
        return {
            **super().get_config(),
            "output_size": self.output_size,
            "overlap": self.overlap,
        }
