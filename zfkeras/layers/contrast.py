"""Contrast normalization across feature maps."""

import keras

from zfkeras import ops


@keras.saving.register_keras_serializable(package="zfkeras")
class LocalResponseNormalization(keras.layers.Layer):
    """Divides every unit by the activity of neighbouring feature maps at the same position.

    Under a float16 policy it computes in float32, whose squares do not overflow.

    Args:
        radius, bias, alpha, beta: As in `zfkeras.architecture.Contrast`.

    Call arguments:
        maps: Float tensor `(batch, height, width, channels)`.

    Output shape:
        That of the input.

    Reference:
        Zeiler & Fergus (2014), Figure 3; Krizhevsky et al. (2012), section 3.3.
    """

    def __init__(self, radius=2, bias=2.0, alpha=1e-4, beta=0.75, **kwargs):
        super().__init__(**kwargs)
        self.radius = radius
        self.bias = bias
        self.alpha = alpha
        self.beta = beta

    def call(self, maps):
        normalized = ops.normalize_contrast(maps, self.radius, self.bias, self.alpha, self.beta)
        return keras.ops.cast(normalized, self.compute_dtype)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {
            **super().get_config(),
            "radius": self.radius,
            "bias": self.bias,
            "alpha": self.alpha,
            "beta": self.beta,
        }
