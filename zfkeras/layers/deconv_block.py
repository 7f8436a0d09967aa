"""The mirror of a `ConvBlock`: unpooling, rectification, transposed filtering."""

import keras

from zfkeras import ops
from zfkeras.layers.unpooling import MaxUnpooling2D


@keras.saving.register_keras_serializable(package="zfkeras")
class DeconvBlock(keras.layers.Layer):
    """Takes maps that a `ConvBlock` made back to the maps it made them from.

    Unpools with the switches of the forward pass, rectifies, then filters with the transpose of
    the same filters. Biases play no part and contrast normalization is skipped, as in the paper.

    Args:
        conv_block: The built `ConvBlock` to mirror; its filters are shared, not copied.
        output_size: `(height, width)` of the maps or the picture that entered `conv_block`.
        overlap: Rule for switches shared by overlapping windows, see `MaxUnpooling2D`.

    Call arguments:
        signal: Float tensor shaped like `conv_block`'s outputs; without `switches`, like its
            rectified maps.
        switches: What `conv_block` emitted. Left out, the signal already lies on the maps before
            pooling, as it does in the layer that a projection starts from.

    Output shape:
        `(batch, *output_size, channels)` of what entered `conv_block`.

    Reference:
        Zeiler & Fergus (2014), section 2.1 and Figure 1.
    """

    def __init__(self, conv_block, output_size, overlap="sum", **kwargs):
        super().__init__(**kwargs)
        self.conv_block = conv_block
        self.output_size = tuple(output_size)
        self.overlap = overlap
        self.unpooling = conv_block.pooling and MaxUnpooling2D(
            conv_block.rectified_size(self.output_size), overlap, dtype=self.dtype_policy
        )
        self.supports_jit = False

    def build(self, signal_shape, switches_shape=None):
        self.built = True  # The filters are the mirrored block's own.

    def call(self, signal, switches=None):
        if switches is not None:
            signal = self.unpooling(signal, switches)
        if self.conv_block.rectification:
            signal = keras.ops.relu(signal)
        filtering = self.conv_block.filtering
        if not filtering:
            return signal
        return ops.transpose_filters(
            signal,
            keras.ops.cast(self.conv_block.kernel, signal.dtype),
            self.output_size,
            filtering.strides,
            filtering.padding,
            filtering.groups,
        )

    def compute_output_shape(self, signal_shape, switches_shape=None):
        filtering = self.conv_block.filtering
        channels = signal_shape[-1]
        if filtering:
            channels = self.conv_block.kernel.shape[2] * filtering.groups
        return (signal_shape[0], *self.output_size, channels)

    def get_config(self):
        return {
            **super().get_config(),
            "conv_block": keras.saving.serialize_keras_object(self.conv_block),
            "output_size": self.output_size,
            "overlap": self.overlap,
        }

    @classmethod
    def from_config(cls, config):
        conv_block = keras.saving.deserialize_keras_object(config["conv_block"])
        return cls(**{**config, "conv_block": conv_block})
