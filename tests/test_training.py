import dataclasses
import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import random_model
from PIL import Image

from zfkeras.data import datasets, shapes
from zfkeras.data.datasets import DatasetError
from zfkeras.training import loop
from zfkeras.training.config import TrainingConfig
from zfkeras.training.evaluation import evaluate, misses
from zfkeras.training.loop import TrainingError, load_run, train
from zfkeras.training.schedule import PLATEAU_FACTOR, rate_factor
from zfkeras.training.strategy import make_strategy

CONFIG = TrainingConfig(
    dataset="shapes",
    architecture="zfnet-small",
    epochs=2,
    global_batch_size=8,
    initialization="he",
    schedule="cosine",
)


@pytest.fixture(autouse=True)
def few_shapes(monkeypatch):
    monkeypatch.setattr(shapes, "COUNTS", {"train": 24, "validation": 13})


def test_training_learns_and_leaves_a_run(tmp_path):
    rows = []
    config = dataclasses.replace(CONFIG, epochs=3, crops="centre")

    run = train(config, tmp_path / "run", on_epoch=rows.append)

    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert run.errors.count == 13
    assert run.class_names == shapes.CLASS_NAMES
    revived = load_run(tmp_path / "run")
    for weight, kept in zip(run.model.get_weights(), revived.model.get_weights(), strict=True):
        np.testing.assert_array_equal(weight, kept)
    np.testing.assert_array_equal(run.mean_image, revived.mean_image)
    assert revived.config == config
    assert revived.metrics == run.metrics
    assert revived.errors == run.errors


def test_a_run_that_stopped_between_epochs_goes_on(tmp_path):
    class Stopped(Exception):
        pass

    def stop(row):
        raise Stopped

    with pytest.raises(Stopped):
        train(CONFIG, tmp_path, on_epoch=stop)
    rows = []

    run = train(CONFIG, tmp_path, on_epoch=rows.append)

    assert [row["epoch"] for row in rows] == [2]
    assert [row["epoch"] for row in run.metrics] == [1, 2]
    uninterrupted = train(CONFIG, tmp_path / "whole")
    for weight, resumed in zip(
        uninterrupted.model.get_weights(), run.model.get_weights(), strict=True
    ):
        # Momentum, data order and dropout go on as well. Sums over threads differ in their order.
        np.testing.assert_allclose(resumed, weight, atol=1e-5)


def test_every_filter_keeps_its_limit(tmp_path):
    config = dataclasses.replace(CONFIG, epochs=1, filter_rms=0.02)

    run = train(config, tmp_path)

    for block in run.model.feature_layers:
        kernel = np.asarray(run.model.get_layer(block).kernel)
        assert np.sqrt((kernel**2).mean(axis=(0, 1, 2))).max() <= 0.02 * (1 + 1e-5)
    # He's initialization starts above the limit, so it was the limit that held.
    assert np.sqrt(2 / (25 * 48)) > 0.02


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_half_precision_trains(tmp_path, precision):
    run = train(
        dataclasses.replace(CONFIG, epochs=1, precision=precision, colour_jitter=0.2), tmp_path
    )

    assert math.isfinite(run.metrics[0]["loss"])
    assert run.model.get_layer("conv2").compute_dtype == precision.removeprefix("mixed_")
    assert load_run(tmp_path).model.get_layer("conv2").compute_dtype == "float32"


def step_once(strategy_name, tiny, batches):
    """Weights after steps on given batches, dropout off."""
    strategy = make_strategy(strategy_name)
    without_dropout = dataclasses.replace(
        tiny, dense=tuple(dataclasses.replace(layer, dropout=0.0) for layer in tiny.dense)
    )
    config = dataclasses.replace(CONFIG, weight_decay=1e-2, label_smoothing=0.1, crops="centre")
    with strategy.scope():
        model = random_model(without_dropout)
        optimizer = keras.optimizers.SGD(0.01, 0.9)
        optimizer.build(model.trainable_variables)
    step = loop._training_step(model, optimizer, strategy, tf.zeros((40, 40, 3)), config)
    dataset = tf.data.Dataset.from_tensor_slices(batches).batch(8)
    totals = [step(*batch).numpy() for batch in strategy.experimental_distribute_dataset(dataset)]
    return model.get_weights(), np.array(totals)


def test_two_devices_train_as_one_does(tiny, rng, monkeypatch):
    monkeypatch.setitem(loop.ARCHITECTURES, CONFIG.architecture, tiny)
    images = rng.integers(0, 255, (16, 40, 40, 3), dtype=np.uint8)
    batches = images, rng.integers(0, 4, 16, dtype=np.int32), np.zeros((16, 2), np.int64)

    one, one_totals = step_once("default", tiny, batches)
    two, two_totals = step_once("mirrored", tiny, batches)

    np.testing.assert_allclose(two_totals, one_totals, rtol=1e-4)
    for weight, mirrored in zip(one, two, strict=True):
        np.testing.assert_allclose(mirrored, weight, atol=1e-4)


def test_the_mirrored_strategy_trains_on_two_devices(tmp_path):
    assert make_strategy("mirrored").num_replicas_in_sync == 2

    run = train(dataclasses.replace(CONFIG, epochs=1, strategy="mirrored"), tmp_path)

    assert run.errors.count == 13
    assert math.isfinite(run.metrics[0]["loss"])


def test_errors_count_every_picture_once(tiny, rng):
    model = random_model(tiny, num_classes=7)
    images = rng.integers(0, 255, (11, 41, 41, 3), dtype=np.uint8)
    labels = rng.integers(0, 7, 11, dtype=np.int32)
    mean_image = rng.uniform(90, 160, (41, 41, 3)).astype(np.float32)

    errors = evaluate(
        model, tf.data.Dataset.from_tensor_slices((images, labels)), mean_image, batch_size=4
    )

    inputs = (images - mean_image)[:, 6:35, 2:39]
    ranking = np.argsort(-model.predict(inputs, verbose=0), axis=1)
    assert errors.count == 11
    assert errors.top1 == pytest.approx(np.mean(ranking[:, 0] != labels))
    assert errors.top5 == pytest.approx(np.mean((ranking[:, :5] != labels[:, None]).all(1)))


def test_misses_look_at_the_k_largest():
    logits = tf.constant([[0.1, 0.9, 0.5, 0.4]] * 2)

    assert misses(logits, tf.constant([2, 0]), 1).numpy().tolist() == [1, 1]
    assert misses(logits, tf.constant([2, 0]), 2).numpy().tolist() == [0, 1]
    assert misses(logits, tf.constant([2, 0]), 5).numpy().tolist() == [0, 0]


def test_a_dead_network_hits_by_chance_only():
    labels = tf.range(10)

    assert misses(tf.zeros((10, 10)), labels, 1).numpy().sum() == 9
    assert misses(tf.zeros((10, 10)), labels, 5).numpy().sum() == 5


def test_epochs_differ_and_repeat(rng):
    examples = datasets.load("shapes", "train", 16).examples

    first, again, second = (
        [labels.numpy().tolist() for _, labels, _ in loop._epoch(examples, CONFIG, epoch)]
        for epoch in (0, 0, 1)
    )

    assert first == again
    assert first != second
    assert sorted(np.ravel(first)) == sorted(np.ravel(second))


@pytest.mark.parametrize(
    ("schedule", "progress", "errors", "factor"),
    [
        ("constant", 0.9, [], 1),
        ("cosine", 0, [], 1),
        ("cosine", 0.5, [], 0.5),
        ("cosine", 1, [], 0),
        ("step", 0.3, [], 1),
        ("step", 0.4, [], 0.1),
        ("step", 1, [], 0.01),
        ("plateau", 0.9, [0.5, 0.4, 0.3], 1),
        ("plateau", 0.9, [0.5, 0.4, 0.45, 0.4, 0.41], PLATEAU_FACTOR),
        ("plateau", 0.9, [0.5, 0.4, 0.45, 0.4, 0.41, 0.3, 0.4, 0.4, 0.4], PLATEAU_FACTOR**2),
    ],
)
def test_the_learning_rate_follows_its_schedule(schedule, progress, errors, factor):
    assert rate_factor(schedule, progress, errors) == pytest.approx(factor)


def test_defaults_are_the_papers():
    config = TrainingConfig("imagenet2012")

    assert (config.epochs, config.global_batch_size, config.side) == (70, 128, 256)
    assert (config.learning_rate, config.momentum, config.filter_rms) == (0.01, 0.9, 0.1)
    assert TrainingConfig.from_json(config.to_json()) == config


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"architecture": "vgg"}, "`architecture` must be one of zfnet, .*'vgg'"),
        ({"schedule": "never"}, "`schedule`"),
        ({"crops": "two"}, "`crops`"),
        ({"initialization": "zeros"}, "`initialization`"),
        ({"precision": "int8"}, "`precision`"),
        ({"strategy": "tpu"}, "`strategy`"),
        ({"epochs": 0}, "`epochs` must be positive"),
        ({"learning_rate": math.nan}, "`learning_rate` must be positive"),
        ({"momentum": 2}, "`momentum` must be at least 0 and below 1"),
        ({"label_smoothing": 1}, "`label_smoothing`"),
        ({"weight_decay": -1}, "`weight_decay` must not be negative"),
        ({"warmup_steps": -5}, "`warmup_steps`"),
        ({"seed": -1}, "`seed`"),
        ({"resize_size": 100}, "at least the input of the architecture, 224"),
    ],
)
def test_unknown_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        TrainingConfig("shapes", **options)


def test_another_runs_directory_is_not_touched(tmp_path):
    train(dataclasses.replace(CONFIG, epochs=1), tmp_path)

    with pytest.raises(TrainingError, match="another configuration"):
        train(dataclasses.replace(CONFIG, epochs=2), tmp_path)


def test_a_run_that_cannot_start_claims_no_directory(tmp_path):
    config = dataclasses.replace(CONFIG, strategy="mirrored", global_batch_size=7)

    with pytest.raises(TrainingError, match="divide among 2 replicas. Received: 7"):
        train(config, tmp_path / "run")

    assert not (tmp_path / "run").exists()


def test_a_run_does_not_go_on_with_other_classes(tmp_path, monkeypatch):
    train(dataclasses.replace(CONFIG, epochs=1), tmp_path)
    monkeypatch.setattr(shapes, "CLASS_NAMES", shapes.CLASS_NAMES[::-1])

    with pytest.raises(TrainingError, match="holds a run on the classes face, car"):
        train(dataclasses.replace(CONFIG, epochs=1), tmp_path)


def test_a_batch_larger_than_the_data_set_is_refused(tmp_path):
    with pytest.raises(TrainingError, match="24 training pictures. Expected at least .* 25"):
        train(dataclasses.replace(CONFIG, global_batch_size=25), tmp_path)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    with pytest.raises(TrainingError, match="not finite after step"):
        train(dataclasses.replace(CONFIG, learning_rate=math.inf), tmp_path)


def test_directories_without_a_run_are_named(tmp_path):
    with pytest.raises(TrainingError, match="no training run"):
        load_run(tmp_path)


def test_a_broken_picture_in_a_folder_is_named(tmp_path):
    for split in ("train", "val"):
        for name in ("a", "b"):
            folder = tmp_path / "pictures" / split / name
            folder.mkdir(parents=True)
            for index in range(5):
                image = shapes.draw(index, size=150).image
                Image.fromarray(image).save(folder / f"{index}.jpg")
    broken = tmp_path / "pictures/train/b/3.jpg"
    broken.write_bytes(broken.read_bytes()[:200])
    config = dataclasses.replace(CONFIG, dataset=str(tmp_path / "pictures"))

    with pytest.raises(DatasetError, match=r"train/b/3\.jpg cannot be read as a picture"):
        train(config, tmp_path / "run")


def cut_short(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("pattern", "damage"),
    [
        ("checkpoints/*.data-*", cut_short),
        ("metrics.csv", lambda path: path.unlink()),
        ("metrics.csv", cut_short),
        ("config.json", cut_short),
        ("config.json", lambda path: path.write_text('{"dataset": "shapes", "what": 1}')),
        ("mean_image.npy", cut_short),
    ],
    ids=["checkpoint", "no metrics", "metrics", "config", "unknown key", "mean image"],
)
def test_a_damaged_run_is_named(tmp_path, pattern, damage):
    train(dataclasses.replace(CONFIG, epochs=1), tmp_path)
    for path in list(tmp_path.glob(pattern)):
        damage(path)

    with pytest.raises(TrainingError, match="holds a damaged run"):
        load_run(tmp_path)
