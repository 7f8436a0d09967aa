import dataclasses
import json
import math
import os
import re
import signal
import subprocess

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import random_model
from PIL import Image

from zfkeras import trained as networks
from zfkeras.data import batches, datasets, shapes
from zfkeras.data.datasets import DatasetError
from zfkeras.models import ZFNet
from zfkeras.training import loop, run
from zfkeras.training.config import TrainingConfig
from zfkeras.training.loop import TrainingStopped, train
from zfkeras.training.optimizer import SGD
from zfkeras.training.run import TrainingError, load_run
from zfkeras.training.strategy import make_strategy

CONFIG = TrainingConfig(
    dataset="shapes",
    architecture="zfnet-small",
    epochs=2,
    global_batch_size=8,
    initialization="he",
    schedule="cosine",
    resize_size=146,
    snapshot_epochs=(1, 2),
)


@pytest.fixture(autouse=True)
def few_shapes(monkeypatch):
    # Neither divides into batches of eight.
    monkeypatch.setattr(shapes, "COUNTS", {"train": 22, "validation": 13})


def assert_same_weights(one, other, **tolerance):
    for weight, expected in zip(one.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_allclose(weight, expected, **tolerance)


def test_training_learns_and_leaves_a_run(tmp_path):
    rows = []
    config = dataclasses.replace(CONFIG, epochs=3, crops="centre")

    trained = train(config, tmp_path / "run", on_epoch=rows.append)

    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert trained.errors.count == 13
    assert trained.class_names == shapes.CLASS_NAMES
    revived = load_run(tmp_path / "run")
    assert_same_weights(revived.model, trained.model, rtol=0)
    np.testing.assert_array_equal(trained.mean_image, revived.mean_image)
    assert revived.config == config
    assert revived.metrics == trained.metrics
    assert revived.errors == trained.errors
    assert_same_weights(networks.load(tmp_path / "run").model, trained.model, rtol=0)


def test_a_work_directory_holds_what_a_person_may_ask_for(tmp_path):
    trained = train(CONFIG, tmp_path)

    environment = json.loads((tmp_path / "environment.json").read_text())
    assert environment[0]["versions"]["tensorflow"] == tf.__version__
    assert len(environment[0]["devices"]) == 2
    facts = json.loads((tmp_path / "dataset.json").read_text())
    assert facts["train"] == {"count": 22, "unreadable": []}
    assert facts["class_names"] == list(shapes.CLASS_NAMES)
    assert len(list((tmp_path / "checkpoints").glob("*.index"))) == 2
    assert len(list((tmp_path / "best").glob("*.index"))) == 1
    snapshot = ZFNet(trained.model.architecture, 6)
    snapshot.load_weights(tmp_path / "snapshots/epoch-0002.weights.h5")
    assert_same_weights(snapshot, trained.model, rtol=0)
    snapshot.load_weights(tmp_path / "snapshots/epoch-0001.weights.h5")
    assert np.abs(snapshot.get_weights()[0] - trained.model.get_weights()[0]).max() > 0


def test_tensorboard_finds_curves_and_filters(tmp_path):
    trained = train(CONFIG, tmp_path)

    found = {}
    for path in (tmp_path / "summaries").glob("events*"):
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            for value in event.summary.value:
                found.setdefault(value.tag, []).append((event.step, value.tensor))
    losses = [(step, tf.make_ndarray(tensor)) for step, tensor in found["epoch/loss"]]
    assert [step for step, _ in losses] == [3, 6]
    np.testing.assert_allclose(
        [loss for _, loss in losses], [row["loss"] for row in trained.metrics], rtol=1e-6
    )
    encoded = found["first_layer_filters"][-1][1].string_val[2]
    assert tf.io.decode_png(encoded).shape[0] > 300
    assert {"step/loss", "step/learning_rate", "step/images_per_second"} <= set(found)
    assert {"epoch/validation_top1_error", "epoch/filters_capped"} <= set(found)


def test_every_picture_counts_in_every_epoch(tmp_path, monkeypatch):
    """The last batch has six pictures of eight; its padding must not teach or be counted."""
    seen = []
    made = loop.training_step

    def watched(*arguments):
        step = made(*arguments)

        def counting(batch, stop):
            sums = step(batch, stop)
            seen.append(float(sums[2]))
            return sums

        return counting

    monkeypatch.setattr(loop, "training_step", watched)

    train(dataclasses.replace(CONFIG, epochs=1), tmp_path)

    assert seen == [8, 8, 6]


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_fused_update_is_keras_own(rng, momentum):
    start, *gradients = rng.normal(size=(5, 1000)).astype(np.float32)
    variables = []
    for kind in (SGD, keras.optimizers.SGD):
        variable, optimizer = keras.Variable(start), kind(0.1, momentum)
        for step, gradient in enumerate(gradients):
            optimizer.learning_rate = 0.1 / (step + 1)
            optimizer.apply([tf.constant(gradient)], [variable])
        variables.append(variable)

    # A fused multiplication and addition rounds once.
    np.testing.assert_allclose(*variables, rtol=1e-6, atol=1e-6)


def test_padding_teaches_nothing(tiny, rng):
    config = dataclasses.replace(CONFIG, crops="centre")
    images = rng.integers(0, 255, (8, 40, 40, 3), dtype=np.uint8)
    labels = rng.integers(0, 4, 8, dtype=np.int32)
    weights = np.array([1, 1, 1, 1, 1, 0, 0, 0], np.float32)
    trained = []
    for padding in (images[5:], 255 - images[5:]):
        model = random_model(without_dropout(tiny))
        optimizer = SGD(0.01)
        optimizer.build(model.trainable_variables)
        strategy = tf.distribute.get_strategy()
        step = loop.training_step(model, optimizer, strategy, tf.zeros((40, 40, 3)), config)
        batch = np.concatenate([images[:5], padding]), labels, weights, np.zeros((8, 8), np.float32)
        sums = step(tuple(map(tf.constant, batch)), tf.constant(0.0))
        assert sums[2] == 5
        trained.append(model)

    assert_same_weights(*trained, rtol=0, atol=1e-7)


def test_every_filter_keeps_its_limit(tmp_path):
    config = dataclasses.replace(CONFIG, epochs=1, filter_rms=0.02)

    trained = train(config, tmp_path)

    capped = 0
    for block in trained.model.feature_layers:
        kernel = np.asarray(trained.model.get_layer(block).kernel)
        rms = np.sqrt((kernel**2).mean(axis=(0, 1, 2)))
        assert rms.max() <= 0.02 * (1 + 1e-5)
        capped += (rms > 0.02 * (1 - 1e-5)).sum()
    # He's initialization starts above the limit in most layers, so it was the limit that held.
    assert trained.metrics[-1]["filters_capped"] == capped > 300
    # Dense weights have no limit.
    assert np.sqrt((np.asarray(trained.model.get_layer("fc7").kernel) ** 2).mean()) > 0.02


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_half_precision_trains(tmp_path, precision):
    trained = train(
        dataclasses.replace(CONFIG, epochs=1, precision=precision, colour_jitter=0.2), tmp_path
    )

    assert math.isfinite(trained.metrics[0]["loss"])
    assert trained.model.get_layer("conv2").compute_dtype == precision.removeprefix("mixed_")
    assert load_run(tmp_path).model.get_layer("conv2").compute_dtype == "float32"


def without_dropout(architecture):
    dense = tuple(dataclasses.replace(layer, dropout=0.0) for layer in architecture.dense)
    return dataclasses.replace(architecture, dense=dense)


def test_compiled_training_is_the_same(tmp_path, tiny, monkeypatch):
    monkeypatch.setitem(run.ARCHITECTURES, CONFIG.architecture, without_dropout(tiny))
    trained = [
        train(dataclasses.replace(CONFIG, jit_compile=compiled), tmp_path / str(compiled))
        for compiled in (False, True)
    ]

    assert_same_weights(trained[0].model, trained[1].model, atol=1e-5)


def test_progress_is_shown_within_epochs(tmp_path, capsys):
    train(dataclasses.replace(CONFIG, epochs=1), tmp_path, progress=True)

    shown = capsys.readouterr().err
    # Fast steps are not all shown.
    assert re.search(
        r"epoch 1/1 step [1-3]/3 loss \d\.\d+ error \d+\.\d% \|.*images/s, 00:\d\d left", shown
    )
    assert "validating:  62%" in shown or "validating: 100%" in shown


def test_a_run_that_stopped_between_epochs_goes_on(tmp_path):
    class Stopped(Exception):
        pass

    def stop(row):
        raise Stopped

    with pytest.raises(Stopped):
        train(CONFIG, tmp_path, on_epoch=stop)
    rows = []

    resumed = train(CONFIG, tmp_path, on_epoch=rows.append)

    assert [row["epoch"] for row in rows] == [2]
    assert [row["epoch"] for row in resumed.metrics] == [1, 2]
    whole = train(CONFIG, tmp_path / "whole")
    # Momentum, data order and dropout go on as well. Sums over threads differ in their order.
    assert_same_weights(resumed.model, whole.model, atol=1e-5)
    assert [row["loss"] for row in resumed.metrics] == pytest.approx(
        [row["loss"] for row in whole.metrics], rel=1e-5
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_a_signal_saves_and_stops_within_an_epoch(tmp_path, monkeypatch, number):
    made, done = loop.training_step, []

    def interrupted(*arguments):
        step = made(*arguments)

        def one(batch, stop):
            done.append(1)
            if len(done) == 4:  # The first step of the second epoch.
                os.kill(os.getpid(), number)
            return step(batch, stop)

        return one

    before = signal.getsignal(number)
    with monkeypatch.context() as patch, pytest.raises(TrainingStopped) as stopped:
        patch.setattr(loop, "training_step", interrupted)
        train(CONFIG, tmp_path)
    assert stopped.value.signal_number == number
    assert re.search("step [12] of 3 of epoch 2. The same command goes on", str(stopped.value))
    assert signal.getsignal(number) == before

    resumed = train(CONFIG, tmp_path)

    whole = train(CONFIG, tmp_path / "whole")
    assert_same_weights(resumed.model, whole.model, atol=1e-5)
    assert [row["training_top1_error"] for row in resumed.metrics] == [
        row["training_top1_error"] for row in whole.metrics
    ]


def test_a_finished_run_only_says_so_again(tmp_path):
    first = train(dataclasses.replace(CONFIG, epochs=1), tmp_path)
    rows = []

    again = train(dataclasses.replace(CONFIG, epochs=1), tmp_path, on_epoch=rows.append)

    assert rows == []
    assert again.errors == first.errors
    assert_same_weights(again.model, first.model, rtol=0)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_what_was_good(tmp_path, monkeypatch):
    train(dataclasses.replace(CONFIG, epochs=1), tmp_path)
    kept = load_run(tmp_path)
    # The same run with another epoch, which blows up.
    text = (tmp_path / "config.toml").read_text()
    (tmp_path / "config.toml").write_text(text.replace("epochs = 1", "epochs = 2", 1))
    monkeypatch.setattr(loop, "rate_factor", lambda *arguments: math.nan)

    with pytest.raises(TrainingError, match="loss is not finite after step 2 of epoch 2. .* kept"):
        train(CONFIG, tmp_path)
    with pytest.raises(TrainingError, match="network is not finite after step 1 of epoch 2"):
        train(dataclasses.replace(CONFIG, checkpoint_steps=1), tmp_path)

    assert_same_weights(load_run(tmp_path).model, kept.model, rtol=0)


def step_once(strategy_name, tiny, arrays):
    """Weights and sums after two steps on given batches, dropout off."""
    strategy = make_strategy(strategy_name)
    config = dataclasses.replace(
        CONFIG, weight_decay=1e-2, label_smoothing=0.1, crops="scaled", colour_jitter=0.3
    )
    with strategy.scope():
        model = random_model(without_dropout(tiny))
        optimizer = SGD(0.01, 0.9)
        optimizer.build(model.trainable_variables)
    step = loop.training_step(model, optimizer, strategy, tf.zeros((40, 40, 3)), config)
    replicas = strategy.num_replicas_in_sync
    parts = tf.data.Dataset.from_tensor_slices(arrays).batch(8 // replicas)
    iterator = iter(strategy.distribute_datasets_from_function(lambda context: parts))
    sums = [step(next(iterator), tf.constant(0.0)).numpy() for _ in range(2)]
    return model, np.array(sums)


def test_two_devices_train_as_one_does(tiny, rng):
    images = rng.integers(0, 255, (16, 40, 40, 3), dtype=np.uint8)
    weights = np.ones(16, np.float32)
    weights[14:] = 0
    labels = rng.integers(0, 4, 16, dtype=np.int32)
    arrays = images, labels, weights, rng.random((16, 8)).astype(np.float32)

    one, one_sums = step_once("default", tiny, arrays)
    two, two_sums = step_once("mirrored", tiny, arrays)

    np.testing.assert_allclose(two_sums, one_sums, rtol=1e-4)
    np.testing.assert_array_equal(two_sums[:, 1:], one_sums[:, 1:])
    assert_same_weights(two, one, atol=1e-4)


def test_the_mirrored_strategy_trains_as_the_default_does(tmp_path, tiny, monkeypatch):
    monkeypatch.setitem(run.ARCHITECTURES, CONFIG.architecture, without_dropout(tiny))
    assert make_strategy("mirrored").num_replicas_in_sync == 2
    default, mirrored = (
        train(dataclasses.replace(CONFIG, strategy=name), tmp_path / name)
        for name in ("default", "mirrored")
    )

    assert_same_weights(mirrored.model, default.model, atol=1e-5)
    for one, other in zip(default.metrics, mirrored.metrics, strict=True):
        for name in ("training_top1_error", "validation_top1_error", "validation_top5_error"):
            assert one[name] == other[name]


def test_a_run_may_go_on_under_another_strategy(tmp_path, tiny, monkeypatch):
    monkeypatch.setitem(run.ARCHITECTURES, CONFIG.architecture, without_dropout(tiny))

    def stop(row):
        raise KeyError

    with pytest.raises(KeyError):
        train(CONFIG, tmp_path, on_epoch=stop)

    resumed = train(dataclasses.replace(CONFIG, strategy="mirrored"), tmp_path)

    whole = train(CONFIG, tmp_path / "whole")
    assert_same_weights(resumed.model, whole.model, atol=1e-5)


def test_devices_drop_different_units():
    strategy = make_strategy("mirrored")
    with strategy.scope():
        dropout = loop.build_network(CONFIG, ("a", "b"), "float32").get_layer("fc6_dropout")

    dropped = strategy.run(lambda: dropout(tf.ones((4, 512)), training=True))

    one, other = strategy.experimental_local_results(dropped)
    assert 0.4 < np.mean(one == 0) < 0.6
    assert np.mean((one == 0) == (other == 0)) < 0.6
    # On the first device the units are those that Keras drops.
    own = keras.layers.Dropout(0.5, seed=dropout.seed_generator._initial_seed)
    own.seed_generator.state.assign(dropout.seed_generator.state.value * 0)
    dropout.seed_generator.state.assign(dropout.seed_generator.state.value * 0)
    np.testing.assert_array_equal(
        own(tf.ones((4, 512)), training=True), dropout(tf.ones((4, 512)), training=True)
    )


def test_another_runs_directory_is_not_touched(tmp_path):
    train(dataclasses.replace(CONFIG, epochs=1), tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}

    for changes in ({"epochs": 2}, {"architecture": "zfnet", "resize_size": 256}):
        with pytest.raises(TrainingError, match="another configuration, .*epochs=1|architecture="):
            train(dataclasses.replace(CONFIG, **{"epochs": 1} | changes), tmp_path)

    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_run_does_not_go_on_with_other_classes_or_pictures(tmp_path, monkeypatch):
    config = dataclasses.replace(CONFIG, epochs=1)
    train(config, tmp_path)

    with monkeypatch.context() as patch:
        patch.setattr(shapes, "CLASS_NAMES", (*shapes.CLASS_NAMES, "tree"))
        with pytest.raises(TrainingError, match="on the 6 classes face, .*Received 7: .*, tree"):
            train(config, tmp_path)
    monkeypatch.setattr(shapes, "COUNTS", {"train": 23, "validation": 13})
    with pytest.raises(TrainingError, match="pictures of shapes have changed since the run"):
        train(config, tmp_path)


def test_a_run_that_cannot_start_claims_no_directory(tmp_path):
    config = dataclasses.replace(CONFIG, strategy="mirrored", global_batch_size=7)

    with pytest.raises(TrainingError, match="divide among 2 replicas. Received: 7"):
        train(config, tmp_path / "run")

    assert not (tmp_path / "run").exists()


def test_a_full_disk_is_noticed_before_training(tmp_path, monkeypatch):
    usage = run.shutil.disk_usage(tmp_path)._replace(free=50 * 2**20)
    monkeypatch.setattr(run.shutil, "disk_usage", lambda path: usage)

    with pytest.raises(TrainingError, match="has 50 MiB free. This run will write 1.. MiB"):
        train(CONFIG, tmp_path)


def test_a_disk_that_fills_up_is_named(tmp_path, monkeypatch):
    def fail(*arguments):
        message = "{{function_node x}} ckpt-1; No space left on device [Op:SaveV2]\nmore"
        raise tf.errors.ResourceExhaustedError(None, None, message)

    monkeypatch.setattr(tf.train.CheckpointManager, "save", fail)

    with pytest.raises(TrainingError, match="cannot be written: ckpt-1; No space left on device.$"):
        train(CONFIG, tmp_path)


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("kept")

    with pytest.raises(TrainingError, match="file/run cannot be written"):
        train(CONFIG, tmp_path / "file" / "run")


def folder_of_pictures(path):
    for split in ("train", "val"):
        for label in ("a", "b"):
            folder = path / split / label
            folder.mkdir(parents=True)
            for index in range(5):
                image = shapes.draw(index, size=150).image
                Image.fromarray(image).save(folder / f"{index}.jpg")
    for broken in ("train/b/3.jpg", "val/a/1.jpg"):
        (path / broken).write_bytes((path / broken).read_bytes()[:200])
    return path


@pytest.mark.parametrize("cache_gib", [4, 0], ids=["cached", "read again"])
def test_broken_pictures_are_left_out_and_listed(tmp_path, cache_gib):
    pictures = folder_of_pictures(tmp_path / "pictures")
    config = dataclasses.replace(CONFIG, dataset=str(pictures), epochs=1, cache_gib=cache_gib)

    trained = train(config, tmp_path / "run")

    facts = json.loads((tmp_path / "run/dataset.json").read_text())
    assert facts["train"] == {"count": 9, "unreadable": [str(pictures / "train/b/3.jpg")]}
    assert facts["validation"] == {"count": 9, "unreadable": [str(pictures / "val/a/1.jpg")]}
    assert trained.errors.count == 9
    # A second start knows them already.
    assert train(config, tmp_path / "run").errors == trained.errors


def test_strict_training_stops_at_a_broken_picture(tmp_path):
    pictures = folder_of_pictures(tmp_path / "pictures")
    config = dataclasses.replace(CONFIG, dataset=str(pictures), strict=True)

    with pytest.raises(DatasetError, match=r"train/b/3\.jpg cannot be read as a picture"):
        train(config, tmp_path / "run")


def test_a_picture_that_breaks_while_training_is_named(tmp_path, monkeypatch):
    pictures = folder_of_pictures(tmp_path / "pictures")
    config = dataclasses.replace(CONFIG, dataset=str(pictures), cache_gib=0)
    read_through = batches.read_through

    def then_break(*arguments):
        reading = read_through(*arguments)
        for broken in ("train/b/3.jpg", "val/a/1.jpg"):
            (pictures / broken).unlink(missing_ok=True)
        (pictures / "train/a/2.jpg").write_bytes(b"")
        return reading

    monkeypatch.setattr(batches, "read_through", then_break)

    with pytest.raises(DatasetError, match=r"train/a/2\.jpg cannot be read as a picture"):
        train(config, tmp_path / "run")


def cut_short(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("pattern", "damage"),
    [
        ("checkpoints/*.data-*", cut_short),
        ("metrics.csv", lambda path: path.unlink()),
        ("metrics.csv", cut_short),
        ("config.toml", cut_short),
        ("config.toml", lambda path: path.write_text('dataset = "shapes"\nwhat = 1\n')),
        ("mean_image.npy", cut_short),
        ("dataset.json", cut_short),
    ],
    ids=["checkpoint", "no metrics", "metrics", "config", "unknown key", "mean image", "dataset"],
)
def test_a_damaged_run_is_named(tmp_path, pattern, damage):
    train(dataclasses.replace(CONFIG, epochs=1), tmp_path)
    for path in list(tmp_path.glob(pattern)):
        damage(path)

    with pytest.raises(TrainingError, match="holds a damaged run"):
        load_run(tmp_path)


def test_the_git_revision_is_that_of_the_checkout():
    head = subprocess.run(
        ["git", "-C", datasets.__file__.rpartition("/")[0], "rev-parse", "HEAD"],
        capture_output=True,
        text=True,
    ).stdout.strip()

    assert (run._git_revision() or "").rstrip("+") == head
