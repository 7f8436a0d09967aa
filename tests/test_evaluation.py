import csv
import json

import numpy as np
import pytest
import tensorflow as tf
from conftest import random_model

from zfkeras.data import datasets
from zfkeras.models import ZFNet
from zfkeras.training.evaluation import Evaluator, misses
from zfkeras.training.strategy import make_strategy


@pytest.fixture
def pictures(rng):
    images = rng.integers(0, 255, (11, 41, 41, 3), dtype=np.uint8)
    some = datasets.load("shapes", "validation", 41)
    return datasets.in_memory(some, images, rng.integers(0, 7, 11, dtype=np.int32))


@pytest.fixture
def mean_image(rng):
    return rng.uniform(90, 160, (41, 41, 3)).astype(np.float32)


def raw(pictures):
    images, labels = zip(*pictures.examples().as_numpy_iterator(), strict=True)
    return np.stack(images), np.array(labels)


def softmax(logits):
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)


def ten_view_probabilities(model, images, mean_image):
    """Average over crops cut and flipped in NumPy."""
    inputs = images - mean_image
    corners = [inputs[:, a : a + 29, b : b + 37] for a in (0, 12) for b in (0, 4)]
    views = [*corners, inputs[:, 6:35, 2:39]]
    views += [view[:, :, ::-1] for view in views]
    return np.mean([softmax(model.predict(view, verbose=0)) for view in views], axis=0)


def assert_counts(evaluation, probabilities, labels):
    ranking = np.argsort(-probabilities, axis=1)
    confusion = np.zeros((7, 7), int)
    np.add.at(confusion, (labels, ranking[:, 0]), 1)
    errors = evaluation.errors
    assert errors.count == len(labels)
    assert errors.top1 == pytest.approx(np.mean(ranking[:, 0] != labels))
    assert errors.top5 == pytest.approx(np.mean((ranking[:, :5] != labels[:, None]).all(1)))
    np.testing.assert_array_equal(evaluation.confusion, confusion)


@pytest.mark.parametrize("strategy", ["default", "mirrored"])
def test_one_view_counts_every_picture_once(tiny, pictures, mean_image, strategy):
    strategy, counted = make_strategy(strategy), []
    with strategy.scope():
        model = random_model(tiny, num_classes=7)

    evaluation = Evaluator([model], [mean_image], strategy=strategy)(pictures, 4, counted.append)

    images, labels = raw(pictures)
    inputs = (images - mean_image)[:, 6:35, 2:39]
    assert_counts(evaluation, softmax(model(inputs).numpy()), labels)
    assert sum(counted) == 11


def test_ten_views_are_averaged(tiny, pictures, mean_image):
    model = random_model(tiny, num_classes=7)

    evaluation = Evaluator([model], [mean_image], views=10)(pictures, 4)

    images, labels = raw(pictures)
    assert_counts(evaluation, ten_view_probabilities(model, images, mean_image), labels)


def test_several_models_are_averaged(tiny, pictures, mean_image, rng):
    models = [random_model(tiny, num_classes=7), ZFNet(tiny, 7, initialization="he")]
    means = [mean_image, mean_image + 20]

    evaluation = Evaluator(models, means, views=10)(pictures, 11)

    images, labels = raw(pictures)
    averaged = np.mean(
        [
            ten_view_probabilities(model, images, mean)
            for model, mean in zip(models, means, strict=True)
        ],
        axis=0,
    )
    assert_counts(evaluation, averaged, labels)


def test_an_evaluator_is_traced_once(tiny, pictures, mean_image):
    model = random_model(tiny, num_classes=7)
    evaluator = Evaluator([model], [mean_image])

    first, second = evaluator(pictures, 4), evaluator(pictures, 4)

    assert first.errors == second.errors
    assert evaluator._step.experimental_get_tracing_count() == 1


def test_misses_look_at_the_k_largest():
    scores = tf.constant([[0.1, 0.9, 0.5, 0.4]] * 2)

    assert misses(scores, tf.constant([2, 0]), 1).numpy().tolist() == [1, 1]
    assert misses(scores, tf.constant([2, 0]), 2).numpy().tolist() == [0, 1]
    assert misses(scores, tf.constant([2, 0]), 5).numpy().tolist() == [0, 0]


def test_a_dead_network_hits_by_chance_only():
    labels = tf.range(10)

    assert misses(tf.zeros((10, 10)), labels, 1).numpy().sum() == 9
    assert misses(tf.zeros((10, 10)), labels, 5).numpy().sum() == 5


def test_an_evaluation_is_saved_as_numbers(tiny, pictures, mean_image, tmp_path):
    evaluation = Evaluator([random_model(tiny, num_classes=7)], [mean_image])(pictures)

    evaluation.save(tmp_path / "new", list("abcdefg"), views=1)

    facts = json.loads((tmp_path / "new/errors.json").read_text())
    assert (facts["top1"], facts["count"], facts["views"]) == (evaluation.errors.top1, 11, 1)
    with (tmp_path / "new/confusion.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["class", *"abcdefg"]
    assert [row[0] for row in rows[1:]] == list("abcdefg")
    np.testing.assert_array_equal(
        np.array([row[1:] for row in rows[1:]], int), evaluation.confusion
    )


def test_models_that_do_not_fit_together_are_refused(tiny, mean_image):
    models = [random_model(tiny, num_classes=7), random_model(tiny, num_classes=6)]

    with pytest.raises(ValueError, match=r"same classes.*\[6, 7\] classes, sides of \[41\]"):
        Evaluator(models, [mean_image, mean_image])
    with pytest.raises(ValueError, match=r"sides of \[40, 41\]"):
        Evaluator(models[:1] * 2, [mean_image, mean_image[1:, 1:]])
    with pytest.raises(ValueError, match="`views` must be 1 or 10. Received: views=3"):
        Evaluator(models[:1], [mean_image], views=3)
