"""Two logical CPUs for every test, and the small things that tests are made of."""

import os
import re
import shlex
import subprocess
import sys
import tarfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from zfkeras import export
from zfkeras.architecture import Architecture, Block, Contrast, Dense, Filtering, Pooling
from zfkeras.architecture import Rectification as Rectified
from zfkeras.models import ZFNet
from zfkeras.trained import Trained
from zfkeras.training.config import TrainingConfig
from zfkeras.training.evaluation import Errors
from zfkeras.training.loop import Run

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0],
    [tf.config.LogicalDeviceConfiguration(), tf.config.LogicalDeviceConfiguration()],
)

ROOT = Path(__file__).parents[1]


def pytest_collection_modifyitems(items):
    if not os.environ.get("ZFKERAS_DATA"):
        skip = pytest.mark.skip(reason="ZFKERAS_DATA is not set")
        for item in items:
            if item.get_closest_marker("data"):
                item.add_marker(skip)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def data_dir():
    return Path(os.environ["ZFKERAS_DATA"])


@pytest.fixture(scope="session")
def imagenette(tmp_path_factory):
    """Folder of Imagenette's validation pictures, unpacked; its `val` has a folder per class."""
    folder = tmp_path_factory.mktemp("data")
    with tarfile.open(Path(os.environ["ZFKERAS_DATA"]) / "imagenette160.tar") as archive:
        validation = [m for m in archive.getmembers() if m.name.startswith("imagenette160/val/")]
        archive.extractall(folder, members=validation, filter="data")
    return folder / "imagenette160"


@pytest.fixture(scope="session")
def tiny():
    """Height and width differ, sides are odd, padding bites, windows overlap, pools are cut off."""
    return Architecture(
        "tiny",
        (29, 37),
        (
            Block(
                "conv1", (Filtering(4, 5, 2, 1), Rectified(), Pooling(3, 2), Contrast(alpha=0.1))
            ),
            Block("conv2", (Filtering(6, 3, 1, 1, groups=2), Rectified())),
            Block(
                "conv3", (Filtering(5, 3, 1, 1), Rectified(), Contrast(alpha=0.1), Pooling(3, 2))
            ),
        ),
        (Dense("fc4", 7),),
    )


@pytest.fixture
def tiny_model(tiny):
    return random_model(tiny)


@pytest.fixture
def trained(tiny, rng):
    """The tiny network with a mean image, as it comes from a training run."""
    mean_image = rng.uniform(90, 160, (41, 41, 3)).astype(np.float32)
    return Trained(random_model(tiny), mean_image, ("cat", "dog", "gas pump", "tench"))


def random_model(architecture, num_classes=4, **options):
    """A model with weights large enough that every layer has something to say, biases included."""
    keras.utils.set_random_seed(1)
    model = ZFNet(architecture, num_classes, filter_rms=None, **options)
    rng = np.random.default_rng(1)
    for variable in model.trainable_variables:
        fan_in = int(np.prod(variable.shape[:-1])) if len(variable.shape) > 1 else 4
        variable.assign(rng.normal(size=variable.shape) * np.sqrt(2 / fan_in))
    return model


@pytest.fixture(scope="session")
def export_dir(tiny, tmp_path_factory):
    """A tiny model, exported; its weights are random."""
    folder = tmp_path_factory.mktemp("exported") / "tiny"
    rng = np.random.default_rng(2)
    # `zfnet-small` stands in the card only; the graph is built from the model itself.
    run = Run(
        model=random_model(tiny),
        config=TrainingConfig("shapes", architecture="zfnet-small", epochs=1, resize_size=146),
        class_names=("cat", "dog", "gas pump", "<b>tench</b>"),
        mean_image=rng.uniform(90, 160, (41, 41, 3)).astype(np.float32),
        errors=Errors(0.5, 0.25, 8),
        metrics=[
            {"epoch": 1, "validation_top1_error": 0.5, "validation_top5_error": 0.25, "loss": 1.5}
        ],
    )
    export.save(run, folder, "zfkeras-train --dataset shapes")
    return folder


@pytest.fixture(scope="session")
def shapes_run(tmp_path_factory):
    """README's training command as a newcomer types it: the work directory, what it printed."""
    readme = (ROOT / "README.md").read_text()
    (line,) = re.findall(r"^    zfkeras-train (.*--dataset shapes.*)$", readme, re.MULTILINE)
    arguments, folder = shlex.split(line), tmp_path_factory.mktemp("shapes")
    program = "from zfkeras.cli import train; train()"
    printed = subprocess.check_output(
        [sys.executable, "-c", program, *arguments], text=True, cwd=folder
    )
    return folder / arguments[arguments.index("--workdir") + 1], printed
