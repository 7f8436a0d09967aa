"""A strategy's name -> `tf.distribute.Strategy`, with the devices made ready for it."""

import tensorflow as tf

STRATEGIES = ("default", "mirrored")


def make_strategy(name):
    """The distribution strategy of this name.

    Args:
        name: `"default"`, one device; `"mirrored"`, all GPUs of this machine, or all of its
            logical CPUs if it has none.

    Raises:
        ValueError: If there is no strategy of that name.
    """
    if name not in STRATEGIES:
        raise ValueError(
            f"`strategy` must be one of {', '.join(STRATEGIES)}. Received: strategy={name!r}."
        )
    gpus = tf.config.list_physical_devices("GPU")
    for gpu in gpus:
        try:
            tf.config.experimental.set_memory_growth(gpu, True)
        except RuntimeError:
            # The devices are in use already, as in a notebook; their memory is what it is.
            break
    if name == "default":
        return tf.distribute.get_strategy()
    if gpus:
        return tf.distribute.MirroredStrategy()
    cpus = [f"/cpu:{index}" for index in range(len(tf.config.list_logical_devices("CPU")))]
    # The default for CPUs is a collective that leaves its state in the process: a second strategy
    # in the same process, as in a notebook, fails on it.
    return tf.distribute.MirroredStrategy(cpus, tf.distribute.ReductionToOneDevice())
