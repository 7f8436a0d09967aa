"""Stochastic gradient descent with momentum (section 3 of the paper) in one pass over memory."""

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable(package="zfkeras")
class SGD(keras.optimizers.SGD):
    """Keras's SGD with a fused update.

    Keras updates in four operations, each of which reads and writes as much memory as the network
    has weights: 62 million in Figure 3.

    Args:
        As in `keras.optimizers.SGD`.
    """

    def update_step(self, gradient, variable, learning_rate):
        """`momentum <- m * momentum - rate * gradient; variable <- variable + momentum`."""
        if not self.momentum or self.nesterov or isinstance(gradient, tf.IndexedSlices):
            super().update_step(gradient, variable, learning_rate)
            return
        velocity = self.momentums[self._get_variable_index(variable)].value
        tf.raw_ops.ResourceApplyKerasMomentum(
            var=variable.handle,
            # Of a distributed variable, the handle on the device that is being updated.
            accum=velocity.handle,
            lr=tf.cast(learning_rate, variable.dtype),
            grad=tf.cast(gradient, variable.dtype),
            momentum=tf.cast(self.momentum, variable.dtype),
        )
