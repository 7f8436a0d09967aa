"""A training run and its work directory, from which it can be resumed, exported and looked at.

A work directory holds

`config.toml`
    the configuration, which `zfkeras-train --config` reads;
`environment.json`
    versions, devices and git revision of every start;
`dataset.json`, `mean_image.npy`
    class names, numbers of pictures, what could not be read; the per-pixel mean;
`metrics.csv`, `summaries/`
    one row an epoch; the same and more for TensorBoard;
`checkpoints/`, `best/`
    everything that is needed to go on; the weights with the lowest validation error;
`snapshots/epoch-<n>.weights.h5`
    weights after chosen epochs, for feature evolution (Figure 4).
"""

import contextlib
import csv
import dataclasses
import datetime
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from zfkeras import __version__
from zfkeras.architecture import ARCHITECTURES
from zfkeras.models import ZFNet
from zfkeras.training.config import TrainingConfig
from zfkeras.training.evaluation import Errors
from zfkeras.writing import replacing

CONFIG = "config.toml"
DATASET = "dataset.json"
ENVIRONMENT = "environment.json"
MEAN_IMAGE = "mean_image.npy"
METRICS = "metrics.csv"
CHECKPOINTS = "checkpoints"
BEST = "best"
SNAPSHOTS = "snapshots"
SUMMARIES = "summaries"

WHOLE_NUMBERS = ("epoch", "validation_pictures", "filters_capped")


class TrainingError(ValueError):
    """A run that cannot start or go on; the message says why."""


@dataclass(frozen=True)
class Run:
    """A trained model and how it was made.

    Attributes:
        model: The `ZFNet`.
        config: The `TrainingConfig`.
        class_names: Name of each class.
        mean_image: float32 `(side, side, 3)`, per-pixel mean of the training pictures.
        errors: `Errors` on the validation pictures after the last epoch.
        metrics: One dictionary per epoch, the rows of `metrics.csv`.
        chief: Whether this process is the one of several workers that writes for all.
    """

    model: keras.Model
    config: object
    class_names: tuple[str, ...]
    mean_image: np.ndarray
    errors: Errors
    metrics: list[dict]
    chief: bool = True


def load_run(workdir):
    """The finished or interrupted `Run` in a work directory, as its last finished epoch left it.

    Raises:
        TrainingError: If the directory holds no run that finished an epoch, or a damaged one.
    """
    directory = RunDirectory(workdir)
    latest = tf.train.latest_checkpoint(str(directory.path / CHECKPOINTS))
    if latest is None or not (directory.path / CONFIG).exists():
        raise TrainingError(f"{workdir} holds no training run with a checkpoint.")
    with directory.naming_damage():
        config = TrainingConfig.load(directory.path / CONFIG)
        class_names = tuple(directory.read_dataset()["class_names"])
        mean_image = np.load(directory.path / MEAN_IMAGE)
    # Exported models compute in float32 whatever they were trained in.
    model = build_network(config, class_names, "float32")
    epochs_done = tf.Variable(0, dtype=tf.int64)
    with directory.naming_damage():
        checkpoint = tf.train.Checkpoint(model=model, epochs_done=epochs_done)
        checkpoint.restore(latest).expect_partial()
    metrics = directory.read_metrics(int(epochs_done))
    if not metrics:
        raise TrainingError(f"{workdir} holds a training run that has not finished an epoch.")
    return Run(model, config, class_names, mean_image, errors_of(metrics[-1]), metrics)


def build_network(config, class_names, dtype):
    """The network of a configuration, with the weights that it begins with."""
    architecture = ARCHITECTURES[config.architecture]
    return ZFNet(
        architecture, len(class_names), config.initialization, config.filter_rms, dtype=dtype
    )


def errors_of(row):
    """The `Errors` in a row of metrics."""
    return Errors(
        row["validation_top1_error"], row["validation_top5_error"], row["validation_pictures"]
    )


class RunDirectory:
    """The files of one run.

    Args:
        path: The work directory.
        writes: Whether this process is the one that writes to it; the others only read.
    """

    def __init__(self, path, writes=True):
        self.path = Path(path)
        self.writes = writes

    def claim(self, config, class_names, bytes_needed):
        """Makes the directory this run's, or checks that it is.

        Args:
            config: The `TrainingConfig`.
            class_names: Name of each class.
            bytes_needed: What the run will write at the least.

        Raises:
            TrainingError: If it holds another run, or cannot hold this one.
        """
        if (self.path / CONFIG).exists():
            self._require_same(config, class_names)
        if not self.writes:
            return
        with self.naming_failed_writes():
            self.path.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(self.path).free
            if free < bytes_needed:
                raise TrainingError(
                    f"{self.path} has {free / 2**20:,.0f} MiB free. This run will write "
                    f"{bytes_needed / 2**20:,.0f} MiB."
                )
            self._add_environment()
            # The configuration last: it is what marks a directory as a run's.
            with replacing(self.path / CONFIG) as beside:
                beside.write_text(config.to_toml())

    def read_dataset(self):
        """What `write_dataset` wrote, or None."""
        path = self.path / DATASET
        return json.loads(path.read_text()) if path.exists() else None

    def write_dataset(self, facts, mean_image):
        """Keeps what is known of the data set: a JSON dictionary, and the mean image."""
        if self.writes:
            with replacing(self.path / MEAN_IMAGE) as beside:
                np.save(beside, mean_image)
            with replacing(self.path / DATASET) as beside:
                beside.write_text(json.dumps(facts, indent=2) + "\n")

    def read_metrics(self, epochs_done):
        """The rows of the epochs that are done."""
        if not epochs_done:
            return []
        with self.naming_damage(), (self.path / METRICS).open(newline="") as file:
            metrics = [
                {
                    name: int(value) if name in WHOLE_NUMBERS else float(value)
                    for name, value in row.items()
                }
                for row in csv.DictReader(file)
            ]
            if len(metrics) < epochs_done:
                raise ValueError(f"{METRICS} has {len(metrics)} of {epochs_done} epochs")
        return metrics[:epochs_done]

    def write_metrics(self, metrics):
        """Replaces the rows by these."""
        if self.writes:
            with replacing(self.path / METRICS) as beside, beside.open("w", newline="") as file:
                writer = csv.DictWriter(file, metrics[-1])
                writer.writeheader()
                writer.writerows(metrics)

    def write_snapshot(self, model, epoch):
        """Keeps the weights as they are after an epoch."""
        if self.writes:
            with replacing(self.path / SNAPSHOTS / f"epoch-{epoch:04}.weights.h5") as beside:
                # Keras insists on this ending, which the path beside has lost.
                named = beside.with_name(f"{beside.stem}.weights.h5")
                model.save_weights(named)
                named.replace(beside)

    @contextlib.contextmanager
    def naming_damage(self):
        """Turns whatever a damaged file of the run raises into an error that names the run."""
        try:
            yield
        except Exception as error:
            raise TrainingError(f"{self.path} holds a damaged run: {error}") from error

    @contextlib.contextmanager
    def naming_failed_writes(self):
        """Turns a failure to write, such as a full disk, into an error that names the run."""
        try:
            yield
        except OSError as error:
            raise TrainingError(f"{self.path} cannot be written: {error.strerror}.") from error
        except tf.errors.OpError as error:
            # TensorFlow puts the operation around the file and what became of it.
            reason = re.sub(r"\{\{.*?\}\} | \[Op:.*?\]", "", error.message.splitlines()[0])
            raise TrainingError(f"{self.path} cannot be written: {reason}.") from error

    def _require_same(self, config, class_names):
        with self.naming_damage():
            stored = TrainingConfig.load(self.path / CONFIG)
            facts = self.read_dataset()
        changed = [
            field.name
            for field in dataclasses.fields(config)
            if getattr(stored, field.name) != getattr(config, field.name)
            and not field.metadata.get("execution")
        ]
        if changed:
            before, after = (
                ", ".join(f"{name}={getattr(one, name)}" for name in changed)
                for one in (stored, config)
            )
            raise TrainingError(
                f"{self.path} holds a run with another configuration, {before}. Received: {after}. "
                "Expected the same or an empty work directory."
            )
        if facts and facts["class_names"] != list(class_names):
            raise TrainingError(
                f"{self.path} holds a run on the {len(facts['class_names'])} classes "
                f"{_some(facts['class_names'])}. Received {len(class_names)}: {_some(class_names)}."
            )

    def _add_environment(self):
        path = self.path / ENVIRONMENT
        starts = []
        with contextlib.suppress(ValueError):
            starts = json.loads(path.read_text()) if path.exists() else []
        with replacing(path) as beside:
            beside.write_text(json.dumps([*starts, _environment()], indent=2) + "\n")


def _some(names, most=10):
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def _environment():
    return {
        "started": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": sys.argv,
        "versions": {
            "zfkeras": __version__,
            "tensorflow": tf.__version__,
            "keras": keras.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        "git_revision": _git_revision(),
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "devices": [device.name for device in tf.config.list_logical_devices()],
    }


def _git_revision():
    """Of the checkout that zfkeras runs from, with a + if it was changed; None outside of one."""
    folder = Path(__file__).parent
    try:
        revision, changes = (
            subprocess.check_output(
                ["git", "-C", folder, *words], text=True, stderr=subprocess.DEVNULL, timeout=10
            ).strip()
            for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "--", "."])
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return revision + ("+" if changes else "")


def load_snapshots(workdir):
    """The networks that a run was on its way: pairs of an epoch and a model, the earliest first.

    Every pair holds the same model, which the next one changes.

    Raises:
        TrainingError: If the directory holds no run with snapshots, or a damaged one.
    """
    directory = RunDirectory(workdir)
    found = sorted(directory.path.glob(f"{SNAPSHOTS}/epoch-*.weights.h5"))
    if not found or not (directory.path / CONFIG).exists():
        raise TrainingError(f"{workdir} holds no training run with snapshots.")
    with directory.naming_damage():
        config = TrainingConfig.load(directory.path / CONFIG)
        model = build_network(config, directory.read_dataset()["class_names"], "float32")
    for path in found:
        with directory.naming_damage():
            model.load_weights(path)
        yield int(path.name.removeprefix("epoch-").split(".")[0]), model
