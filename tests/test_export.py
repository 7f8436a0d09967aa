import json
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from zfkeras import export
from zfkeras.data import images
from zfkeras.deconvnet import Deconvnet
from zfkeras.export import ModelError


@pytest.fixture(scope="module")
def exported(export_dir):
    return export.load(export_dir)


@pytest.fixture
def pictures(rng):
    return rng.integers(0, 255, (3, 50, 61, 3), dtype=np.uint8)


def network_inputs(pictures, mean_image, size):
    squares = images.centre_square(tf.constant(pictures), len(mean_image))
    return images.centre_crop(images.subtract_mean(squares, mean_image), size).numpy()


def test_the_signatures_classify_and_project_as_the_python_model_does(exported, pictures):
    model, mean_image = exported.restore()
    inputs = network_inputs(pictures, mean_image, model.architecture.input_size)
    signatures = exported.saved_model.signatures

    probabilities = signatures["serving_default"](pictures=tf.constant(pictures))

    np.testing.assert_allclose(
        probabilities["probabilities"], tf.nn.softmax(model(inputs)), atol=1e-5
    )
    for layer in exported.feature_layers:
        outputs = signatures[f"project_{layer}"](
            pictures=tf.constant(pictures), feature_map=tf.constant([0, -1, -2])
        )
        projected = Deconvnet(model).project_feature_maps(inputs, layer, [0, -1, -2])
        expected = {
            "projection": projected.projections,
            "activation": projected.activations,
            "row": projected.rows,
            "column": projected.columns,
            "feature_map": projected.feature_maps,
            "box": projected.boxes,
            "window": projected.windows,
        }
        for name, values in expected.items():
            scale = max(np.abs(values).max(), 1)
            np.testing.assert_allclose(outputs[name] / scale, values / scale, atol=1e-5)


def test_class_names_are_given_per_picture(exported, pictures):
    outputs = exported.saved_model.signatures["serving_default"](pictures=tf.constant(pictures))

    names = [[name.decode() for name in row] for row in outputs["class_names"].numpy()]
    assert names == [list(exported.class_names)] * 3


def test_one_picture_may_be_projected_from_many_maps(exported, pictures):
    signature = exported.saved_model.signatures["project_conv3"]
    feature_map = tf.constant([-1, 4, -3, 0])

    together = signature(pictures=tf.constant(pictures[:1]), feature_map=feature_map)
    apart = signature(
        pictures=tf.constant(np.repeat(pictures[:1], 4, axis=0)), feature_map=feature_map
    )

    for name in together:
        np.testing.assert_allclose(together[name], apart[name], atol=1e-5)


def test_ranks_go_from_the_strongest_down(exported, pictures):
    projections, seen = exported.project_strongest(pictures[0], "conv3", top_k=5)

    assert (np.diff(projections.activations) <= 0).all()
    assert sorted(projections.feature_maps) == [0, 1, 2, 3, 4]
    assert seen.shape == (29, 37, 3)


def test_what_is_seen_is_what_boxes_refer_to(exported, pictures):
    _, seen = exported.project_strongest(pictures[0], "conv1", top_k=1)

    square = images.centre_square(tf.constant(pictures[0]), 41)
    np.testing.assert_array_equal(seen, images.centre_crop(square, (29, 37)))


@pytest.mark.parametrize("shape", [(1, 1, 1, 3), (2, 29, 300, 3), (1, 700, 30, 3)])
def test_pictures_may_have_any_size(exported, shape):
    outputs = exported.saved_model.signatures["serving_default"](pictures=tf.zeros(shape, tf.uint8))

    np.testing.assert_allclose(np.sum(outputs["probabilities"], axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize("feature_map", [[5], [-6], [0, 0]])
def test_the_graph_refuses_what_it_does_not_have(exported, pictures, feature_map):
    with pytest.raises(tf.errors.InvalidArgumentError, match="Expected"):
        exported.saved_model.signatures["project_conv3"](
            pictures=tf.constant(pictures), feature_map=tf.constant(feature_map)
        )


@pytest.mark.parametrize(
    ("layer", "feature_maps", "message"),
    [
        ("conv9", [0], "a layer of conv1, conv2, conv3. Received: 'conv9'"),
        ("conv3", [5], "conv3 has feature maps 0 to 4. Received: 5"),
        ("conv3", [-6], "Received: -6"),
    ],
)
def test_python_names_what_is_not_there(exported, pictures, layer, feature_maps, message):
    with pytest.raises(ValueError, match=message):
        exported.project(pictures[0], layer, feature_maps)


WITHOUT_KERAS = """
import sys

# None makes an import fail and a look-up find nothing, as where they are not installed.
ABSENT = ("keras", "tf_keras", "zfkeras")
sys.modules.update(dict.fromkeys(ABSENT))

import numpy as np
import tensorflow as tf

folder, arrays, output = sys.argv[1:]
pictures = np.load(arrays)
model = tf.saved_model.load(folder)
results = {}
for name, signature in model.signatures.items():
    if name == "serving_default":
        outputs = signature(pictures=tf.constant(pictures))
    elif name.startswith("project_"):
        outputs = signature(
            pictures=tf.constant(pictures), feature_map=tf.constant([0, -1, -2])
        )
    else:
        outputs = signature()
    results |= {f"{name}/{key}": value.numpy() for key, value in outputs.items()}
assert not [name for name in sys.modules if name.split(".")[0] in ABSENT and sys.modules[name]]
np.savez(output, **results)
"""


def test_a_process_without_keras_and_zfkeras_gets_the_same(
    export_dir, exported, pictures, tmp_path
):
    np.save(tmp_path / "pictures.npy", pictures)
    arguments = [exported.path, tmp_path / "pictures.npy", tmp_path / "results.npz"]

    subprocess.run([sys.executable, "-c", WITHOUT_KERAS, *map(str, arguments)], check=True)

    model, mean_image = exported.restore()
    inputs = network_inputs(pictures, mean_image, model.architecture.input_size)
    with np.load(tmp_path / "results.npz") as results:
        np.testing.assert_allclose(
            results["serving_default/probabilities"], tf.nn.softmax(model(inputs)), atol=1e-5
        )
        np.testing.assert_allclose(
            results["first_layer_filters/filters"],
            np.transpose(model.get_layer("conv1").kernel, (3, 0, 1, 2)),
        )
        for layer in exported.feature_layers:
            expected = Deconvnet(model).project_feature_maps(inputs, layer, [0, -1, -2])
            scale = np.abs(expected.projections).max()
            np.testing.assert_allclose(
                results[f"project_{layer}/projection"] / scale,
                expected.projections / scale,
                atol=1e-5,
            )
            np.testing.assert_array_equal(results[f"project_{layer}/box"], expected.boxes)


def test_every_weight_is_written_once(exported):
    model, _ = exported.restore()
    written = sum(path.stat().st_size for path in (exported.path / "variables").iterdir())

    assert 4 * model.count_params() <= written <= 4 * model.count_params() + 8192


def test_inputs_and_outputs_have_the_names_of_the_contract(exported):
    signatures = exported.saved_model.signatures

    assert set(signatures) == {
        "serving_default",
        "first_layer_filters",
        "project_conv1",
        "project_conv2",
        "project_conv3",
    }
    assert set(signatures["serving_default"].structured_input_signature[1]) == {"pictures"}
    assert set(signatures["serving_default"].structured_outputs) == {
        "probabilities",
        "class_names",
    }
    assert set(signatures["project_conv3"].structured_input_signature[1]) == {
        "pictures",
        "feature_map",
    }
    outputs = {"projection", "activation", "row", "column", "box", "window", "picture"}
    assert set(signatures["project_conv3"].structured_outputs) == outputs | {"feature_map"}


def test_the_card_says_how_the_model_was_made(exported):
    card = exported.card

    assert card["command"] == "zfkeras-train --dataset shapes"
    assert card["errors"] == {"top1": 0.5, "top5": 0.25, "count": 8}
    assert card["class_names"] == ["cat", "dog", "gas pump", "<b>tench</b>"]
    assert card["training"]["momentum"] == 0.9
    assert np.load(exported.path / card["mean_image"]).shape == (41, 41, 3)
    assert "zfkeras-train --dataset shapes" in (exported.path / "README.md").read_text()


def test_the_highest_version_is_loaded(exported, tmp_path):
    for name in ("1", "9", "10"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "saved_model.pb").write_bytes(
            (exported.path / "saved_model.pb").read_bytes()
        )

    with pytest.raises(ModelError, match=r"10 has no readable card\.json"):
        export.load(tmp_path)


def test_models_are_found_below_a_folder(exported, tmp_path):
    assert export.find(exported.path.parents[1]) == [exported.path]
    unfinished = tmp_path / "name" / ".partial-x"
    unfinished.mkdir(parents=True)
    for name in ("saved_model.pb", export.CARD):
        (unfinished / name).write_bytes((exported.path / name).read_bytes())
    assert export.find(tmp_path) == []


def no_folder(folder):
    return folder / "nothing"


def empty_folder(folder):
    return folder


def broken_card(folder):
    (folder / "saved_model.pb").write_bytes(b"")
    (folder / export.CARD).write_text("{")
    return folder


def broken_graph(folder):
    (folder / "saved_model.pb").write_bytes(b"no graph")
    card = {"architecture": {"name": "x", "input_size": [8, 8], "blocks": [], "dense": []}}
    card |= dict.fromkeys(export.REQUIRED_KEYS)
    (folder / export.CARD).write_text(json.dumps(card))
    return folder


def card_without_classes(folder):
    (folder / "saved_model.pb").write_bytes(b"no graph")
    card = {"architecture": {"name": "x", "input_size": [8, 8], "blocks": [], "dense": []}}
    (folder / export.CARD).write_text(json.dumps(card))
    return folder


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (card_without_classes, r"no readable card\.json"),
        (no_folder, "There is no folder"),
        (empty_folder, "holds no exported model"),
        (broken_card, r"no readable card\.json"),
        (broken_graph, "does not load"),
    ],
)
def test_folders_without_a_model_say_so(tmp_path, damage, message):
    with pytest.raises(ModelError, match=message):
        export.load(damage(tmp_path))
