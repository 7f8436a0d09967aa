"""Real processes of `zfkeras-train`, killed without warning, and several of them as workers."""

import csv
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from zfkeras.data import shapes

TRAIN = """
import sys
import tensorflow as tf
devices = int(sys.argv.pop(1))
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * devices
)
from zfkeras.cli import train
train()
"""


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Forty-four pictures to train on: five batches of eight and half a one."""
    folder = tmp_path_factory.mktemp("pictures")
    for split, count in (("train", 22), ("val", 3)):
        for label, name in enumerate(("face", "car")):
            place = folder / split / name
            place.mkdir(parents=True)
            for index in range(count):
                picture = shapes.draw(6 * index + label, size=146).image
                Image.fromarray(picture).save(place / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def stored(tmp_path_factory, pictures):
    """The same pictures as a data set that tensorflow-datasets has prepared, in three files."""
    tfds = pytest.importorskip("tensorflow_datasets")
    data_dir = tmp_path_factory.mktemp("data")

    class StoredPictures(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")
        name = "stored_pictures"
        pkg_dir_path = data_dir

        def _info(self):
            names = sorted(path.name for path in (pictures / "train").iterdir())
            features = {
                "image": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
                "label": tfds.features.ClassLabel(names=names),
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, download_manager):
            folders = {"train": "train", "validation": "val"}
            return {split: self._generate_examples(pictures / folders[split]) for split in folders}

        def _generate_examples(self, folder):
            for path in sorted(folder.glob("*/*.png")):
                name = str(path.relative_to(folder))
                yield name, {"image": path, "label": path.parent.name}

    config = tfds.download.DownloadConfig(num_shards=3)
    StoredPictures(data_dir=data_dir).download_and_prepare(download_config=config)
    assert len(list(data_dir.rglob("*train*.tfrecord-*"))) == 3
    return data_dir


@pytest.fixture
def start(pictures):
    """Starts a training process; what is still running at the end of the test is ended."""
    started = []

    def start(workdir, *options, devices=1, environment=None, prefix=()):
        arguments = [
            *("--preset", "zfnet-small", "--dataset", pictures, "--epochs", 3, "--batch-size", 8),
            *("--checkpoint-steps", 2, "--workdir", workdir, *options),
        ]
        process = subprocess.Popen(
            [*prefix, sys.executable, "-c", TRAIN, str(devices), *map(str, arguments)],
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", **(environment or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def finish(*processes):
    """What the processes print; they must succeed."""
    printed = [process.communicate(timeout=300) for process in processes]
    for process, (_, errors) in zip(processes, printed, strict=True):
        assert process.returncode == 0, errors
    return [output for output, _ in printed]


def kill_after_checkpoint(workdir, number, process):
    """Kills a process a random moment after a checkpoint of this number has appeared."""
    deadline = time.monotonic() + 200
    while not list(workdir.glob(f"checkpoints/ckpt-{number}.index")):
        assert time.monotonic() < deadline, "no checkpoint"
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    time.sleep(random.uniform(0, 0.2))
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not list(workdir.glob("checkpoints/ckpt-9.index")), "it had finished"


def state(workdir):
    """Everything in the last checkpoint: weights, momentum, dropout, where the run is."""
    latest = tf.train.latest_checkpoint(str(workdir / "checkpoints"))
    reader = tf.train.load_checkpoint(latest)
    return {
        name: reader.get_tensor(name)
        for name in reader.get_variable_to_shape_map()
        if "OBJECT_GRAPH" not in name
    }


def errors(workdir):
    """What metrics.csv says, as text, but for what was not counted."""
    with (workdir / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    kept = [name for name in rows[0] if name == "epoch" or "error" in name or "pictures" in name]
    return [{name: row[name] for name in kept} for row in rows]


def assert_same_state(workdir, expected, **tolerance):
    found, wanted = state(workdir), state(expected)
    assert found.keys() == wanted.keys()
    assert len(found) > 30
    for name, value in wanted.items():
        if "save_counter" not in name:  # Counts the savings, which a killed run does over.
            np.testing.assert_allclose(found[name], value, err_msg=name, **tolerance)


@pytest.mark.parametrize("case", ["default", "mirrored", "streamed"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::PendingDeprecationWarning")
def test_a_killed_run_ends_bit_for_bit_as_one_that_was_not(tmp_path, start, case, request):
    options = ("--deterministic",)
    devices = 2 if case == "mirrored" else 1
    if case == "mirrored":
        options += ("--strategy", "mirrored")
    elif case == "streamed":
        data_dir = request.getfixturevalue("stored")
        # With no room to keep pictures, every epoch reads the files again.
        options += ("--dataset", "stored_pictures", "--data-dir", data_dir, "--cache-gib", 0)
    whole = start(tmp_path / "whole", *options, devices=devices)
    killed = start(tmp_path / "killed", *options, devices=devices)
    # Nine checkpoints in all, one every two steps: anywhere but at the very end.
    kill_after_checkpoint(tmp_path / "killed", random.choice([1, 2, 3, 4]), killed)
    (output,) = finish(start(tmp_path / "killed", *options, devices=devices))
    (expected,) = finish(whole)

    assert output.splitlines()[-1] == expected.splitlines()[-1]
    assert_same_state(tmp_path / "killed", tmp_path / "whole", rtol=0, atol=0)


def test_sigterm_saves_and_says_how_to_go_on(tmp_path, start):
    process = start(tmp_path)
    while not list(tmp_path.glob("checkpoints/ckpt-1.index")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate(timeout=120)

    assert process.returncode == 128 + signal.SIGTERM, errors
    assert output.splitlines()[-1].endswith("The same command goes on from there.")
    (finished,) = finish(start(tmp_path))
    assert finished.startswith("epoch ")


def test_a_read_only_directory_is_named_at_once(tmp_path, start):
    (tmp_path / "config.toml").write_text("kept")
    tmp_path.chmod(0o555)
    # Permissions do not bind root, unless it gives up what sets it above them.
    powers = "-dac_override,-dac_read_search"
    prefix = ("setpriv", f"--bounding-set={powers}", f"--inh-caps={powers}")
    for workdir in (tmp_path, tmp_path / "run"):
        process = start(workdir, prefix=() if os.geteuid() else prefix)
        _, complaint = process.communicate(timeout=60)
        assert process.returncode == 2
        assert complaint.splitlines()[-1].startswith(f"Error: {workdir} ")
    assert complaint.splitlines()[-1] == f"Error: {workdir} cannot be written: Permission denied."
    assert [path.name for path in tmp_path.iterdir()] == ["config.toml"]
    assert (tmp_path / "config.toml").read_text() == "kept"


def free_ports(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def start_workers(start, workdir, *options):
    cluster = {"worker": [f"127.0.0.1:{port}" for port in free_ports(2)]}
    return [
        start(
            workdir,
            *("--strategy", "multi_worker_mirrored", *options),
            environment={
                "TF_CONFIG": json.dumps(
                    {"cluster": cluster, "task": {"type": "worker", "index": index}}
                )
            },
        )
        for index in range(2)
    ]


def test_two_workers_train_as_two_devices_do_and_survive_being_killed(tmp_path, start):
    """Two workers have the replicas of two devices, so that even dropout is the same."""
    mirrored = start(tmp_path / "mirrored", "--strategy", "mirrored", devices=2)
    left, killed = random.sample(start_workers(start, tmp_path / "killed"), 2)
    kill_after_checkpoint(tmp_path / "killed", random.choice([1, 2, 3, 4]), killed)
    _, complaint = left.communicate(timeout=120)
    assert left.returncode == 2
    assert complaint.splitlines()[-1].startswith("Error: Another worker cannot be reached. Start")
    outputs = finish(*start_workers(start, tmp_path / "killed", "--export", tmp_path / "exported"))
    (expected,) = finish(mirrored)

    # Only the chief exports; otherwise both say the same.
    assert outputs[0].splitlines()[-1] == outputs[1].splitlines()[-1] == expected.splitlines()[-1]
    assert [path.name for path in (tmp_path / "exported").iterdir()] == ["1"]
    # Each strategy adds up the gradients in its own order.
    assert_same_state(tmp_path / "killed", tmp_path / "mirrored", rtol=1e-3, atol=1e-4)
    rows, expected_rows = (errors(tmp_path / name) for name in ("killed", "mirrored"))
    assert rows == expected_rows
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
