"""A strategy's name -> `tf.distribute.Strategy`, with the devices made ready for it."""

import os

import tensorflow as tf

from zfkeras.choices import STRATEGIES
from zfkeras.data.batches import Share


def make_strategy(name):
    """The distribution strategy of this name.

    Args:
        name: `"default"`, one device; `"mirrored"`, all GPUs of this machine, or all of its
            logical CPUs if it has none; `"multi_worker_mirrored"`, all GPUs of all the workers that
            the environment variable `TF_CONFIG` lists, and to be made before anything else is done
            with TensorFlow.

    Raises:
        ValueError: If there is no strategy of that name, or no `TF_CONFIG` for several workers.
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
    if name == "multi_worker_mirrored":
        if not os.environ.get("TF_CONFIG"):
            raise ValueError(
                "Strategy multi_worker_mirrored needs the environment variable TF_CONFIG, which "
                "lists the workers and says which of them this one is."
            )
        return tf.distribute.MultiWorkerMirroredStrategy()
    if gpus:
        return tf.distribute.MirroredStrategy()
    cpus = [f"/cpu:{index}" for index in range(len(tf.config.list_logical_devices("CPU")))]
    # The default for CPUs is a collective that leaves its state in the process: a second strategy
    # in the same process, as in a notebook, fails on it.
    return tf.distribute.MirroredStrategy(cpus, tf.distribute.ReductionToOneDevice())


def is_chief(strategy):
    """Whether this process is the one that writes what all workers have made together."""
    resolver = strategy.cluster_resolver
    if resolver is None or not resolver.task_type:
        return True
    cluster = resolver.cluster_spec().as_dict()
    return resolver.task_type == "chief" or (
        "chief" not in cluster and resolver.task_type == "worker" and resolver.task_id == 0
    )


def this_worker():
    """`(number, count)`: which of the workers that `TF_CONFIG` lists this one is, from 0.

    Nothing is started and nobody is asked: it says how work is shared that needs no talk.
    """
    resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
    cluster = resolver.cluster_spec().as_dict()
    chiefs, workers = len(cluster.get("chief", ())), len(cluster.get("worker", ()))
    if resolver.task_type not in ("chief", "worker") or not chiefs + workers:
        raise ValueError(
            "Several workers need the environment variable TF_CONFIG, which lists the workers and "
            "says which of them this one is."
        )
    first = chiefs if resolver.task_type == "worker" else 0
    return first + resolver.task_id, chiefs + workers


def distribute(strategy, batches):
    """Iterator over batches, each device of the strategy getting its part.

    Args:
        strategy: A `tf.distribute.Strategy`.
        batches: Function of a `Share`: this worker's dataset of devices' parts, without end.
    """

    def of_worker(context):
        replicas = context.num_replicas_in_sync // context.num_input_pipelines
        return batches(Share(context.input_pipeline_id, context.num_input_pipelines, replicas))

    return iter(strategy.distribute_datasets_from_function(of_worker))
