"""The renormalization of filters that the paper calls crucial (section 3)."""

import keras


@keras.saving.register_keras_serializable(package="zfkeras")
class FilterRMS(keras.constraints.Constraint):
    """Scales every filter whose root mean square exceeds a limit back to that limit.

    A Keras constraint, so the optimizer applies it after every update. The paper does not say how
    often it renormalizes; after every update is the natural reading.

    Args:
        limit: Largest RMS of a filter, over its rows, columns and incoming maps. The paper's 0.1
            assumes pictures in about [-128, 128].

    Reference:
        Zeiler & Fergus (2014), section 3.
    """

    def __init__(self, limit=0.1):
        if limit <= 0:
            raise ValueError(f"`limit` must be positive. Received: limit={limit}.")
        self.limit = limit

    def __call__(self, kernel):
        """Renormalizes a kernel `(height, width, channels, filters)`."""
        mean_square = keras.ops.mean(keras.ops.square(kernel), axis=(0, 1, 2), keepdims=True)
        rms = keras.ops.sqrt(mean_square)
        return kernel * (self.limit / keras.ops.maximum(rms, self.limit))

    def get_config(self):
        return {"limit": self.limit}
