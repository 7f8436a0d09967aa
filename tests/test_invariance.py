import csv

import keras
import numpy as np
import pytest
import tensorflow as tf
from click.testing import CliRunner
from PIL import Image

from zfkeras import plots
from zfkeras.cli import cli
from zfkeras.invariance import InvarianceProbe, default_values, feature_distances
from zfkeras.trained import from_keras


@pytest.fixture
def square(rng):
    return rng.integers(0, 255, (41, 41, 3), np.uint8)


def test_what_changes_nothing_has_no_distance(trained, square):
    nothing = {"vertical": [0.0], "horizontal": [0], "scale": [1], "rotation": [0, 360, -720]}
    found = InvarianceProbe(trained, values=nothing)([square])

    _, inputs = trained.prepare(square, (29, 37))
    plain = tf.nn.softmax(trained.model(inputs)).numpy()[0]
    assert found.labels.tolist() == [plain.argmax()]
    for kind in nothing:
        assert not found.distances[kind].any()
        np.testing.assert_allclose(found.probabilities[kind], plain.max(), rtol=1e-5)


@pytest.mark.parametrize("batch_size", [3, 32])
def test_distances_equal_the_formula_one_step_at_a_time(trained, square, batch_size):
    values = {"vertical": [-9.0, 4.0], "rotation": [20.0, 180.0, 290.0, 355.0]}
    probe = InvarianceProbe(trained, ("conv1", "fc4"), values, border="edge")
    other = square[::-1].copy()

    found = probe([square, other], [2, None], batch_size)

    model = keras.Model(
        trained.model.input, [trained.model.get_layer("fc4").output, trained.model.output]
    )
    for index, picture in enumerate((square, other)):
        _, plain = trained.prepare(picture, (29, 37))
        features, logits = model(plain)
        label = (2, int(np.argmax(logits)))[index]
        assert found.labels[index] == label
        for kind, steps in values.items():
            for step, value in enumerate(steps):
                seen = probe.transformed(picture, kind, [value])
                moved, logits = model(seen - trained.mean_image[6:35, 2:39])
                distance = np.linalg.norm(moved - features) / np.linalg.norm(features)
                np.testing.assert_allclose(found.distances[kind][index, 1, step], distance, 1e-4)
                probability = tf.nn.softmax(logits)[0, label]
                np.testing.assert_allclose(
                    found.probabilities[kind][index, step], probability, atol=1e-5
                )


def test_distances_in_every_unit():
    features = np.array([[3, 0, 4], [3, 0, 0], [0, 0, 8]], np.float32)
    np.testing.assert_allclose(feature_distances(features, "none"), [4, 5])
    np.testing.assert_allclose(feature_distances(features), [0.8, 1])
    unit = [np.hypot(0.4, 0.8), np.hypot(0.6, 0.2)]
    np.testing.assert_allclose(feature_distances(features, "unit"), unit, rtol=1e-6)


def test_the_paper_s_steps():
    values = default_values((224, 224))
    np.testing.assert_array_equal(values["vertical"], np.arange(-60, 61, 5))
    np.testing.assert_allclose(values["scale"], np.arange(1, 1.81, 0.05))
    np.testing.assert_array_equal(values["rotation"], np.arange(0, 351, 10))
    assert default_values((128, 256))["horizontal"].max() == 69


def test_what_cannot_be_probed_is_refused(trained, square):
    with pytest.raises(ValueError, match="`normalization` must be one of relative, unit, none"):
        InvarianceProbe(trained, normalization="l2")
    with pytest.raises(ValueError, match="transformations of vertical.* Received: shear"):
        InvarianceProbe(trained, values={"shear": [1.0]})
    with pytest.raises(ValueError, match="Received: none"):
        InvarianceProbe(trained, values={})
    inputs = keras.Input((29, 37, 3))
    maps = keras.layers.Conv2D(4, 3, activation="relu")(inputs)
    logits = keras.layers.Dense(3)(keras.layers.Flatten()(maps))
    with pytest.raises(ValueError, match="gives no probabilities. Expected a softmax"):
        InvarianceProbe(from_keras(keras.Model(inputs, logits)))([np.zeros((37, 37, 3), np.uint8)])


def test_the_command_writes_figure_and_numbers(export_dir, tmp_path, rng, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("one.png", "two.png"):
        Image.fromarray(rng.integers(0, 255, (40, 50, 3), np.uint8)).save(name)
    command = ["invariance", "one.png", "two.png", "--model", str(export_dir)]

    result = CliRunner().invoke(
        cli,
        [
            *(*command, "--label", "gas pump", "--translation", "-4:4:2", "--scale", "1:1.5:0.1"),
            *("--transformations", "vertical,scale", "--border", "10,20,30"),
        ],
    )

    assert result.exit_code == 0, result.output
    *lines, last = result.output.splitlines()
    assert last == "Wrote invariance.png, invariance.csv and invariance.npz to invariance"
    assert len(lines) == 2 and lines[1].startswith("two.png: gas pump, vertical ")
    with np.load("invariance/invariance.npz") as found:
        assert found["layers"].tolist() == ["conv1", "fc4"]
        assert found["vertical_distances"].shape == (2, 2, 5)
        np.testing.assert_allclose(found["scale_values"], [1, 1.1, 1.2, 1.3, 1.4, 1.5])
        with open("invariance/invariance.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == 2 * (5 + 6)
        row = next(r for r in rows if r["picture"] == "two.png" and r["value"] == "1.3")
        assert row["class"] == "gas pump" and row["transformation"] == "scale"
        assert float(row["distance_fc4"]) == found["scale_distances"][1, 1, 3]
        assert float(row["probability"]) == found["scale_probabilities"][1, 3]
    with Image.open("invariance/invariance.png") as figure:
        assert figure.size[0] > 1.5 * figure.size[1]
    for wrong, message in (
        (["--label", "dragon"], "Expected a class of cat, dog, gas pump"),
        (["--label", "1", "--label", "1", "--label", "1"], "one for each of 2 pictures"),
        (["--layers", "conv7"], "no layer 'conv7'"),
        (["--transformations", "shear"], "Received: shear"),
        (["--rotation", "0:10"], "Expected FIRST:LAST:STEP"),
        (["--rotation", "0:10:inf"], "Expected FIRST:LAST:STEP"),
        (["--output", "one.png"], "one.png"),
        (["--rotation", "0:10:-1"], "Expected at most 10000 steps"),
        (["--scale", "0:1:0.5"], "Scales must be positive"),
        (["--border", "blur"], "one of gray, mean, edge, reflect or three numbers"),
        (["--border", "1,2"], "or three numbers"),
    ):
        result = CliRunner().invoke(cli, [*command, *wrong])
        assert result.exit_code == 2, result.output
        assert message in result.output
        assert len(result.output.splitlines()) == 1


def test_one_step_is_a_point_and_many_pictures_are_told_apart(trained, square):
    found = InvarianceProbe(trained, values={"rotation": [5.0]})([square] * 12)
    names = [f"p${index}$" for index in range(12)]

    figure = plots.invariance(found, {"rotation": square}, names, trained.names)
    figure.draw_without_rendering()

    lines = figure.axes[1].get_lines()
    assert {line.get_marker() for line in lines} == {"o"}
    looks = {(line.get_color(), line.get_linestyle()) for line in lines}
    assert len(looks) == 12
