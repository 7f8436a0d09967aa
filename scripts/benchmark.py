"""How fast zfkeras is on this machine. Prints a table, and JSON on request; asserts nothing.

Every figure is a throughput of whole calls after a warm-up call, the median of several. The network
is ZFNet as in Figure 3, 1000 classes, random weights, unless a key says otherwise.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click

BATCH = 32
REPEATS = 5
SCANNED = 20  # Batches.
JPEG_SIZE = (375, 500)  # ImageNet's most frequent.
JPEG_COUNT = 256


def seconds_per_call(call):
    """Median seconds of a call, after one that warms up."""
    call()
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def forward(precision):
    """Logits of 32 pictures."""
    import numpy as np
    import tensorflow as tf

    from zfkeras.architecture import ZFNET
    from zfkeras.models import ZFNet

    model = ZFNet(ZFNET, 1000, dtype=precision)
    inputs = tf.constant(np.random.default_rng(0).normal(size=(BATCH, 224, 224, 3)), tf.float32)
    infer = tf.function(lambda: model(inputs, training=False), autograph=False)
    return BATCH / seconds_per_call(lambda: infer().numpy())


def projections(found):
    """Projections a second of each layer: 18 pictures, of picture i the strongest unit of map i.

    Args:
        found: Whether the units are known beforehand, as they are once a data set was scanned.
    """
    import numpy as np

    from zfkeras.architecture import ZFNET
    from zfkeras.deconvnet import Deconvnet
    from zfkeras.models import ZFNet

    model = ZFNet(ZFNET, 1000, initialization="he")
    deconvnet, count = Deconvnet(model), 18
    inputs = np.random.default_rng(0).normal(size=(count, 224, 224, 3)).astype(np.float32)
    rates = {}
    for layer in deconvnet.feature_layers:
        feature_maps = np.arange(count)
        units = deconvnet.project_feature_maps(inputs, layer, feature_maps)

        def project(layer=layer, units=units):
            if not found:
                return deconvnet.project_feature_maps(inputs, layer, units.feature_maps)
            return deconvnet.project_in_windows(
                inputs, layer, units.pictures, units.feature_maps, units.rows, units.columns
            )

        rates[layer] = count / seconds_per_call(project)
    maps = model.architecture.feature_map_counts()
    # Nine exemplars of every feature map.
    figure2 = sum(9 * maps[layer] / rate for layer, rate in rates.items())
    return {**rates, "figure2_seconds": figure2}


def scan():
    """Pictures a second of a search for exemplars in all five layers, and of a forward pass."""
    import numpy as np
    import tensorflow as tf

    from zfkeras.architecture import ZFNET
    from zfkeras.deconvnet import Deconvnet
    from zfkeras.exemplars import Scan
    from zfkeras.models import ZFNet

    model, rng = ZFNet(ZFNET, 1000, initialization="he"), np.random.default_rng(0)
    deconvnet = Deconvnet(model)
    # As a data set has them, of which nothing but the batch at hand is ever in memory.
    batches = [rng.integers(0, 255, (BATCH, 224, 224, 3), np.uint8) for _ in range(SCANNED)]

    def search():
        scanning = Scan(deconvnet)
        for index, batch in enumerate(batches):
            numbers = tf.range(BATCH, dtype=tf.int64) + index * BATCH
            scanning.update(tf.cast(batch, tf.float32) - 118.0, numbers)

    infer = tf.function(lambda inputs: model(inputs, training=False), autograph=False)

    def forward():
        for batch in batches:
            infer(tf.cast(batch, tf.float32) - 118.0).numpy()

    figures = {}
    for name, call in (("scan", search), ("forward", forward)):
        figures[name] = BATCH * SCANNED / seconds_per_call(call)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        figures[f"{name}_peak_gib"] = peak
    return figures


def gallery_of(count):
    """A whole gallery of one map a layer over so many pictures: seconds, and peak memory."""
    import numpy as np
    import tensorflow as tf

    from zfkeras import gallery
    from zfkeras.architecture import ZFNET
    from zfkeras.data.datasets import IndexedPictures
    from zfkeras.models import ZFNet
    from zfkeras.trained import Trained

    def read(key):
        noise = tf.random.stateless_uniform((256, 256, 3), (0, key), 0, 256, tf.int32)
        return tf.cast(noise, tf.uint8)

    labels = np.zeros(count, np.int32)
    pictures = IndexedPictures("noise", ("noise",), np.arange(count), labels, 256, read)
    mean_image = np.full((256, 256, 3), 118, np.float32)
    trained = Trained(ZFNet(ZFNET, 1000, initialization="he"), mean_image)
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "gallery"
        made = gallery.make(trained, pictures, output, feature_maps=[0], batch_size=BATCH)
    return {
        "scan_seconds": made["scan_seconds"],
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def applications():
    """Projections a second of keras.applications at a middle and at the last layer."""
    import keras
    import numpy as np

    from zfkeras.mirror import Mirror

    rates, count = {}, 18
    for name in ("VGG16", "ResNet50", "MobileNetV2", "InceptionV3", "DenseNet121"):
        deconvnet = Mirror(getattr(keras.applications, name)(weights=None))
        inputs = np.random.default_rng(0).normal(size=(count, *deconvnet.input_shape))
        inputs = inputs.astype(np.float32)
        layers = deconvnet.feature_layers
        for layer in (layers[len(layers) // 2], layers[-1]):
            units = deconvnet.project_strongest(inputs, layer, top_k=1)

            def project(layer=layer, units=units, deconvnet=deconvnet, inputs=inputs):
                return deconvnet.project_in_windows(
                    inputs, layer, units.pictures, units.feature_maps, units.rows, units.columns
                )

            rates[f"{name} {layer}"] = count / seconds_per_call(project)
    return rates


def occlusion(precision):
    """Positions a second of a grey square in steps of 6 pixels, by partial and by whole passes.

    At once: the probabilities and the sum of the strongest layer-5 map, as in Figure 7.
    """
    import numpy as np

    from zfkeras.architecture import ZFNET
    from zfkeras.models import ZFNet
    from zfkeras.occlusion import Occluder
    from zfkeras.trained import Trained

    model = ZFNet(ZFNET, 1000, initialization="he", dtype=precision)
    trained = Trained(model, np.zeros((224, 224, 3), np.float32))
    inputs = np.random.default_rng(0).normal(size=(224, 224, 3)).astype(np.float32)
    figures = {}
    for size in (50, 16):
        for kind, incremental in (("incremental", True), ("whole", False)):
            occluder = Occluder(trained, "conv5", size, 6, incremental=incremental)
            sweep = lambda occluder=occluder: occluder(inputs, np.zeros(3))  # noqa: E731
            figures[f"{size} x {size} {kind}"] = occluder.count / seconds_per_call(sweep)
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
            figures.setdefault("incremental_peak_gib", peak)
    return {**figures, "peak_gib": peak}


def make_step(config, strategy, classes):
    """The training loop's own update, and the side of the squares that it takes."""
    import tensorflow as tf

    from zfkeras.training.loop import training_step
    from zfkeras.training.optimizer import SGD
    from zfkeras.training.run import build_network

    with strategy.scope():
        model = build_network(config, range(classes), config.precision)
        optimizer = SGD(config.learning_rate, config.momentum)
        optimizer.build(model.trainable_variables)
    mean_image = tf.fill((config.side, config.side, 3), 118.0)
    return training_step(model, optimizer, strategy, mean_image, config)


def prepared_batches(config, classes):
    """Random squares again and again, ready in memory: what a step costs without any reading."""
    import numpy as np
    import tensorflow as tf

    rng = np.random.default_rng(0)
    batch = (
        rng.integers(0, 255, (config.global_batch_size, config.side, config.side, 3), np.uint8),
        rng.integers(0, classes, config.global_batch_size).astype(np.int32),
        np.ones(config.global_batch_size, np.float32),
        rng.random((config.global_batch_size, 8), np.float32),
    )

    def of_share(share):
        part = config.global_batch_size // share.workers // share.replicas
        one = tuple(tf.constant(array[:part]) for array in batch)
        return tf.data.Dataset.from_tensors(one).repeat()

    return of_share


def time_steps(step, iterator, batch_size, steps=1):
    """Pictures per second of updates on what an iterator gives."""
    import tensorflow as tf

    go_on = tf.constant(0.0)

    def call():
        for _ in range(steps):
            step(next(iterator), go_on).numpy()

    return batch_size * steps / seconds_per_call(call)


def train(precision):
    """One update on 32 squares of 256 pixels: cropping, both passes, momentum, the RMS cap."""
    from zfkeras.training.config import TrainingConfig
    from zfkeras.training.strategy import distribute, make_strategy

    config = TrainingConfig("none", global_batch_size=BATCH, precision=precision)
    strategy = make_strategy("default")
    step = make_step(config, strategy, 1000)
    return time_steps(step, distribute(strategy, prepared_batches(config, 1000)), BATCH)


def write_pictures(folder):
    """JPEG files of ImageNet's usual size, photograph-like: soft, with some noise."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    for index in range(JPEG_COUNT):
        place = folder / "train" / f"class-{index % 2}"
        place.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 255, (12, 16, 3), dtype=np.uint8))
        soft = coarse.resize(JPEG_SIZE[::-1], Image.Resampling.BICUBIC)
        noisy = np.asarray(soft) + rng.normal(0, 8, (*JPEG_SIZE, 3))
        Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(
            place / f"{index}.jpg", quality=95
        )


def read_jpegs(kept, batch_size):
    """Function of a `Share`: epochs over a folder of JPEG files, without end."""
    from zfkeras.data import batches, datasets

    folder = tempfile.TemporaryDirectory()
    write_pictures(Path(folder.name))
    pictures = datasets.load(folder.name, "train", 256)
    if kept:
        pictures = batches.read_through(pictures, keep=True).pictures

    def epochs(share):
        steps = JPEG_COUNT // batch_size
        epoch = batches.training_batches(pictures, batch_size, 0, 0, share=share)
        return epoch.take(steps).repeat()

    epochs.folder = folder  # Lives as long as what reads from it.
    return epochs


def pipeline():
    """Reading, decoding, resizing and batching alone, per core."""
    from zfkeras.data.batches import WHOLE

    epochs = read_jpegs(False, BATCH)
    iterator = iter(epochs(WHOLE))
    call = lambda: [next(iterator) for _ in range(JPEG_COUNT // BATCH)]  # noqa: E731
    return JPEG_COUNT / seconds_per_call(call) / os.cpu_count()


def train_from_jpegs(kept, precision):
    """Updates on pictures that are read from JPEG files, or were and are kept in memory."""
    from zfkeras.training.config import TrainingConfig
    from zfkeras.training.strategy import distribute, make_strategy

    config = TrainingConfig("none", global_batch_size=BATCH, precision=precision)
    strategy = make_strategy("default")
    step = make_step(config, strategy, 1000)
    epochs = read_jpegs(kept, BATCH)
    return time_steps(step, distribute(strategy, epochs), BATCH, steps=JPEG_COUNT // BATCH)


def small_config(strategy):
    from zfkeras.training.config import TrainingConfig

    changes = {"dataset": "none", "global_batch_size": 64, "strategy": strategy}
    return TrainingConfig.load(preset="zfnet-small", **changes)


def train_small(name, devices):
    """The small ZFNet, 64 pictures an update, shared by devices of this machine."""
    import tensorflow as tf

    from zfkeras.training.strategy import distribute, make_strategy

    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0],
        [tf.config.LogicalDeviceConfiguration()] * devices,
    )
    strategy, config = make_strategy(name), small_config(name)
    step = make_step(config, strategy, 10)
    return time_steps(step, distribute(strategy, prepared_batches(config, 10)), 64)


def two_workers(part):
    """One of `PARTS` by two processes on 127.0.0.1, each with all cores."""
    import socket

    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    cluster = {"worker": [f"127.0.0.1:{one.getsockname()[1]}" for one in sockets]}
    for one in sockets:
        one.close()
    workers = [
        subprocess.Popen(
            [sys.executable, __file__, "--one", part],
            stdout=subprocess.PIPE,
            env={
                **os.environ,
                "TF_CONFIG": json.dumps(
                    {"cluster": cluster, "task": {"type": "worker", "index": index}}
                ),
            },
        )
        for index in range(2)
    ]
    printed = [worker.communicate()[0] for worker in workers]
    return json.loads(printed[0])


def all_reduce(name, devices):
    """Gradients of the small ZFNet added up over devices or workers, times a second."""
    import tensorflow as tf

    from zfkeras.training.run import build_network
    from zfkeras.training.strategy import make_strategy

    if devices > 1:
        tf.config.set_logical_device_configuration(
            tf.config.list_physical_devices("CPU")[0],
            [tf.config.LogicalDeviceConfiguration()] * devices,
        )
    strategy = make_strategy(name)
    with strategy.scope():
        model = build_network(small_config(name), range(10), "float32")

    def add_up():
        context = tf.distribute.get_replica_context()
        # Not constants, which would be added up once and for all before the function runs.
        gradients = [variable.value.read_value() for variable in model.trainable_variables]
        return tf.add_n(
            [
                tf.reduce_sum(one)
                for one in context.all_reduce(tf.distribute.ReduceOp.SUM, gradients)
            ]
        )

    call = tf.function(lambda: strategy.run(add_up), autograph=False)
    return 1 / seconds_per_call(lambda: strategy.experimental_local_results(call())[0].numpy())


KEYS = {
    "forward_images_per_second": lambda: forward("float32"),
    "forward_images_per_second_bfloat16": lambda: forward("mixed_bfloat16"),
    "train_images_per_second": lambda: train("float32"),
    "train_images_per_second_bfloat16": lambda: train("mixed_bfloat16"),
    "projections_per_second": lambda: projections(found=False),
    "projections_per_second_of_known_units": lambda: projections(found=True),
    "projections_per_second_of_applications": applications,
    "scan_images_per_second": scan,
    "gallery_of_1000": lambda: gallery_of(1_000),
    "gallery_of_10000": lambda: gallery_of(10_000),
    "occlusion_positions_per_second": lambda: occlusion("float32"),
    "occlusion_positions_per_second_bfloat16": lambda: occlusion("mixed_bfloat16"),
    "pipeline_images_per_second_per_core": pipeline,
    "train_from_jpegs_images_per_second": lambda: train_from_jpegs(False, "float32"),
    "train_from_jpegs_images_per_second_bfloat16": lambda: train_from_jpegs(
        False, "mixed_bfloat16"
    ),
    "train_from_memory_images_per_second_bfloat16": lambda: train_from_jpegs(
        True, "mixed_bfloat16"
    ),
    "train_small_images_per_second": lambda: train_small("default", 1),
    "train_small_mirrored_images_per_second": lambda: train_small("mirrored", 2),
    "train_small_workers_images_per_second": lambda: two_workers("train_small_worker"),
    "all_reduces_per_second_mirrored": lambda: all_reduce("mirrored", 2),
    "all_reduces_per_second_workers": lambda: two_workers("all_reduce_worker"),
}
# Run by the benchmarks of several processes.
PARTS = {
    "train_small_worker": lambda: train_small("multi_worker_mirrored", 1),
    "all_reduce_worker": lambda: all_reduce("multi_worker_mirrored", 1),
}


@click.command()
@click.option(
    "--only", multiple=True, type=click.Choice(KEYS), help="Measure only this; repeatable."
)
@click.option(
    "--json", "json_file", type=click.Path(path_type=Path), help="Also write the figures here."
)
@click.option("--one", hidden=True, type=click.Choice({**KEYS, **PARTS}))
def benchmark(only, json_file, one):
    """Measure how fast zfkeras is on this machine."""
    if one:
        click.echo(json.dumps({**KEYS, **PARTS}[one]()))
        return
    figures = {}
    for key in only or KEYS:
        # A process each: devices are configured once in a process, and memory is given back.
        printed = subprocess.run(
            [sys.executable, __file__, "--one", key],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            check=True,
        ).stdout
        figures[key] = json.loads(printed.splitlines()[-1])
        parts = figures[key] if isinstance(figures[key], dict) else {"": figures[key]}
        for name, figure in parts.items():
            click.echo(f"{f'{key} {name}':55} {figure:10.1f}")
    if json_file:
        from zfkeras.writing import replacing

        with replacing(json_file) as beside:
            beside.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    benchmark()
