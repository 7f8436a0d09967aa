"""Dropout that knows of the other devices."""

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable(package="zfkeras")
class ReplicaDropout(keras.layers.Dropout):
    """Dropout that drops other units on every device of a distribution strategy.

    Keras's own draws the same random numbers on every device, so that the pictures of a batch would
    share their dropped units. On the first device, and on a single one, this is Keras's.

    Args:
        rate: Share of the units that are dropped in training.

    Call arguments:
        inputs: Float tensor of any shape.
        training: Whether to drop units; without it, the inputs pass unchanged.

    Reference:
        Zeiler & Fergus (2014), section 3; Hinton et al. (2012).
    """

    def call(self, inputs, training=False):
        if not training or not self.rate:
            return inputs
        seed = tf.cast(self.seed_generator.next(), tf.int64)
        # None while a model is put together under a strategy's scope.
        context = tf.distribute.get_replica_context()
        replica = context.replica_id_in_sync_group if context else 0
        seed += tf.stack([tf.cast(replica, tf.int64), 0])
        return tf.nn.experimental.stateless_dropout(inputs, self.rate, seed)
