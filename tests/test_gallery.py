import dataclasses
import json
import re
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from click.testing import CliRunner
from conftest import random_model
from PIL import Image

from zfkeras import gallery, rendering
from zfkeras.cli import cli
from zfkeras.data import datasets, images
from zfkeras.deconvnet import Deconvnet
from zfkeras.exemplars import Scan
from zfkeras.gallery import GalleryError, LayerGallery
from zfkeras.trained import Trained, from_keras

COUNT = 23
SETTINGS = {"layers": ["conv1", "conv3"], "top_k": 4, "batch_size": 4}


@pytest.fixture
def trained(tiny, rng):
    mean_image = rng.uniform(90, 160, (41, 41, 3)).astype(np.float32)
    return Trained(random_model(tiny), mean_image, ("a", "b"))


@pytest.fixture
def folder(tmp_path, rng):
    root = tmp_path / "pictures"
    for index in range(COUNT):
        place = root / "val" / "ab"[index % 2]
        place.mkdir(parents=True, exist_ok=True)
        picture = rng.integers(0, 255, (45, 50, 3), dtype=np.uint8)
        Image.fromarray(picture).save(place / f"{index:02}.png")
    return root


@pytest.fixture
def pictures(folder):
    return datasets.load(str(folder), "validation", 41)


def streamed(pictures):
    """The same pictures as a data set that is read from one end to the other."""
    encoded = [Path(path).read_bytes() for path in pictures.keys]
    return datasets.StreamedPictures(
        pictures.source,
        pictures.class_names,
        pictures.count,
        pictures.side,
        lambda seed: tf.data.Dataset.from_tensor_slices((encoded, pictures.labels)),
        lambda one: images.centre_square(images.decode(one), pictures.side),
    )


def layers_of(output):
    return [LayerGallery.load(output / f"{layer}.npz") for layer in SETTINGS["layers"]]


def assert_same(output, expected):
    for found, wanted in zip(layers_of(output), layers_of(expected), strict=True):
        for name in ("feature_maps", "pictures", "rows", "columns", "boxes", "windows", "patches"):
            np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name))
        limit = 1e-5 * np.abs(wanted.projections).max()
        np.testing.assert_allclose(found.activations, wanted.activations, rtol=1e-5)
        np.testing.assert_allclose(found.projections, wanted.projections, atol=limit)


def test_a_gallery_holds_every_exemplar_and_its_projection(trained, pictures, tmp_path):
    made = gallery.make(trained, pictures, tmp_path / "out", **SETTINGS)

    squares = np.stack([image for image, _ in pictures.examples().as_numpy_iterator()])
    inputs = images.centre_crop(squares - trained.mean_image, trained.model.input_shape[1:3])
    seen = images.centre_crop(squares, trained.model.input_shape[1:3])
    deconvnet = Deconvnet(trained.model)
    scan = Scan(deconvnet, SETTINGS["layers"], SETTINGS["top_k"])
    scan.update(tf.constant(inputs), tf.range(COUNT, dtype=tf.int64))
    checked = 0
    for found in layers_of(tmp_path / "out"):
        exemplars = scan.exemplars[found.layer]
        np.testing.assert_array_equal(found.pictures, exemplars.pictures)
        np.testing.assert_allclose(found.activations, exemplars.activations, rtol=1e-5)
        for feature_map in found.feature_maps:
            ranks = np.flatnonzero(found.pictures[feature_map] >= 0)
            if not len(ranks):  # It never fired.
                continue
            numbers = found.pictures[feature_map, ranks]
            whole = deconvnet.project_units(
                inputs[numbers],
                found.layer,
                feature_map,
                found.rows[feature_map, ranks],
                found.columns[feature_map, ranks],
            )
            np.testing.assert_array_equal(found.boxes[feature_map, ranks], whole.boxes)
            for rank, window in enumerate(found.windows[feature_map, ranks]):
                np.testing.assert_allclose(
                    found.projections[feature_map, rank],
                    rendering.cut(whole.projections[rank], window, 0),
                    atol=1e-5 * np.abs(whole.projections[rank]).max(),
                )
                patch = rendering.cut(seen[numbers[rank]], window, rendering.GREY)
                np.testing.assert_array_equal(found.patches[feature_map, rank], patch)
                assert found.names[feature_map, rank] == pictures.name(numbers[rank])
                checked += 1
    assert checked > 20
    assert made["unreadable"] == []
    page = (tmp_path / "out" / "index.html").read_text()
    for link in ("conv1/0003.png", "conv3/0004.png", "conv3.png", "conv1.npz"):
        assert f'"{link}"' in page
        assert (tmp_path / "out" / link).exists()


def test_a_stream_and_two_devices_give_the_same(trained, pictures, tmp_path):
    gallery.make(trained, pictures, tmp_path / "one", **SETTINGS)
    gallery.make(trained, streamed(pictures), tmp_path / "stream", **SETTINGS)
    gallery.make(trained, pictures, tmp_path / "two", strategy="mirrored", **SETTINGS)

    assert_same(tmp_path / "stream", tmp_path / "one")
    assert_same(tmp_path / "two", tmp_path / "one")


class Stopped(Exception):
    pass


@pytest.mark.parametrize("stop", [("scanning", 8), ("scanning", COUNT), ("projecting conv3", 1)])
def test_a_gallery_that_was_stopped_goes_on(trained, pictures, tmp_path, monkeypatch, stop):
    monkeypatch.setattr(gallery, "SECONDS_BETWEEN_SAVES", 0)
    gallery.make(trained, pictures, tmp_path / "whole", **SETTINGS)

    def interrupt(stage, done, total):
        if stage == stop[0] and done >= stop[1]:
            raise Stopped

    with pytest.raises(Stopped):
        gallery.make(trained, pictures, tmp_path / "out", on_progress=interrupt, **SETTINGS)
    scanned, update = [], Scan.update
    monkeypatch.setattr(
        Scan, "update", lambda self, *batch: scanned.append(1) or update(self, *batch)
    )
    gallery.make(trained, pictures, tmp_path / "out", **SETTINGS)

    assert_same(tmp_path / "out", tmp_path / "whole")
    # Stopped in the second of six batches, before it was saved; in the last one; after them.
    assert len(scanned) == {8: 5, COUNT: 1, 1: 0}[stop[1]]
    gallery.make(trained, pictures, tmp_path / "out", **SETTINGS)
    assert len(scanned) == {8: 5, COUNT: 1, 1: 0}[stop[1]]


@pytest.mark.parametrize("broken", [0, 9, 10, COUNT - 1])
def test_pictures_that_cannot_be_read_are_left_out_and_listed(
    trained, pictures, tmp_path, broken, monkeypatch
):
    monkeypatch.setattr(gallery, "SECONDS_BETWEEN_SAVES", 0)
    broken_path = pictures.keys[broken]
    Path(broken_path).write_bytes(b"no picture")

    def interrupt(stage, done, total):
        if done >= 12:
            raise Stopped

    with pytest.raises(Stopped):
        gallery.make(trained, pictures, tmp_path / "out", on_progress=interrupt, **SETTINGS)
    made = gallery.make(trained, pictures, tmp_path / "out", **SETTINGS)

    assert made["unreadable"] == [broken_path]
    gallery.make(trained, pictures.without([broken]), tmp_path / "without", **SETTINGS)
    for found, wanted in zip(
        layers_of(tmp_path / "out"), layers_of(tmp_path / "without"), strict=True
    ):
        np.testing.assert_array_equal(found.names, wanted.names)
        np.testing.assert_allclose(found.activations, wanted.activations, rtol=1e-5)


def test_a_layer_too_large_for_memory_is_made_in_parts(trained, pictures, tmp_path, monkeypatch):
    gallery.make(trained, pictures, tmp_path / "whole", **SETTINGS)
    monkeypatch.setattr(gallery, "MOST_BYTES", 60_000)
    projected = []

    def interrupt(stage, done, total):
        projected.append(stage)
        if stage == "projecting conv3" and projected.count(stage) > 2:
            raise Stopped

    with pytest.raises(Stopped):
        gallery.make(trained, pictures, tmp_path / "out", on_progress=interrupt, **SETTINGS)
    parts = sorted(path.name for path in (tmp_path / "out").glob(".conv3-*of*.npz"))
    assert parts and len(parts) < int(parts[0].split("of")[1].split(".")[0])
    gallery.make(trained, pictures, tmp_path / "out", **SETTINGS)

    assert_same(tmp_path / "out", tmp_path / "whole")
    for found, wanted in zip(
        layers_of(tmp_path / "out"), layers_of(tmp_path / "whole"), strict=True
    ):
        np.testing.assert_array_equal(found.names, wanted.names)
        assert found.layer == wanted.layer
    files = [
        sorted(path.relative_to(root) for path in root.rglob("*.*"))
        for root in (tmp_path / "out", tmp_path / "whole")
    ]
    assert files[0] == files[1]
    for path in (tmp_path / "whole").rglob("*.png"):
        made = tmp_path / "out" / path.relative_to(tmp_path / "whole")
        np.testing.assert_allclose(
            np.asarray(Image.open(made), int), np.asarray(Image.open(path), int), atol=1
        )


def test_a_damaged_scan_is_named(trained, pictures, tmp_path):
    gallery.make(trained, pictures, tmp_path / "out", **SETTINGS)
    for damaged in (b"", b"PK\x03\x04 and nothing more"):
        (tmp_path / "out" / "scan-1of1.npz").write_bytes(damaged)
        with pytest.raises(GalleryError, match="scan-1of1.npz is damaged"):
            gallery.make(trained, pictures, tmp_path / "out", **SETTINGS)


def keras_model(size=(20, 24)):
    """Layers of any name, a nested model, a window as large as the picture, and a softmax."""
    keras.utils.set_random_seed(1)
    layers = keras.layers
    inner = keras.Sequential(
        [keras.Input((None, None, 4)), layers.Conv2D(5, 3, activation="relu", name="..")],
        name="inner",
    )
    inputs = keras.Input((*size, 3))
    maps = layers.Conv2D(4, 3, activation="relu", name="a b<i>")(inputs)
    maps = layers.MaxPooling2D()(inner(maps))
    maps = layers.Conv2D(3, 3, strides=2, padding="same", name="c")(maps)
    maps = layers.ReLU(name="wide")(maps)
    maps = layers.Conv2D(3, 5, padding="same", activation="relu", name="whole")(maps)
    outputs = layers.Dense(2, activation="softmax", name="s")(layers.Flatten()(maps))
    return keras.Model(inputs, outputs)


def test_the_command_makes_a_gallery_of_a_keras_file(folder, tmp_path):
    model = keras_model()
    model.save(tmp_path / "mine.keras")
    flat = tmp_path / "photos"
    flat.mkdir()
    for path in folder.rglob("*.png"):
        (flat / path.name).write_bytes(path.read_bytes())
    arguments = ["gallery", str(tmp_path / "mine.keras"), "--dataset", str(flat), "--top", "2"]
    arguments += ["--preprocessing", "caffe", "--output", str(tmp_path / "out")]

    result = CliRunner().invoke(cli, arguments)

    assert result.exit_code == 0, result.output
    found = LayerGallery.load(tmp_path / "out" / "whole.npz")
    assert found.projections.shape == (3, 2, 20, 24, 3)
    page = (tmp_path / "out" / "index.html").read_text()
    assert "a b&lt;i&gt;" in page and "<i>" not in page
    for link in ("a_b_i_.npz", "__/0004.png", "wide.png", "whole/0000.png"):
        assert f'"{link}"' in page
        assert (tmp_path / "out" / link).exists()
    assert not list(tmp_path.glob("*.npz"))
    # By hand: what Keras makes of the pictures, blue first and ImageNet's mean taken off.
    paths = sorted(flat.glob("*.png"))
    squares = np.stack(
        [images.centre_square(images.decode(path.read_bytes()), 24) for path in paths]
    )
    inputs = np.float32(images.centre_crop(squares, (20, 24)))[..., ::-1]
    inputs = inputs - np.float32([103.939, 116.779, 123.68])
    maps = keras.Model(model.input, model.get_layer("whole").output)(inputs).numpy()
    for feature_map in range(3):
        strongest = maps[..., feature_map].max(axis=(1, 2))
        best = np.argsort(-strongest, kind="stable")[:2]
        np.testing.assert_array_equal(
            found.names[feature_map], [str(paths[number]) for number in best]
        )
        np.testing.assert_allclose(found.activations[feature_map], strongest[best], rtol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mine.keras", "--layers", "s"], r"Layer 's' (Dense) has the activation softmax"),
        (
            ["mine.keras", "--layers", "x"],
            "no layer 'x'. Expected one of a b<i>, .., wide, whole",
        ),
        (["mine.keras", "--input-size", "10x10"], "takes pictures of 20 x 24 pixels"),
        (["mine.keras", "--input-size", "ten"], "Expected HEIGHTxWIDTH, such as 224x224"),
        (["open.keras"], "leaves the size of its pictures open"),
        (["linear.keras"], "has no layer of rectified maps that can be projected"),
        (["text.keras"], "text.keras is not a .keras file"),
        (["zip.keras"], "zip.keras does not load in Keras's safe mode"),
        (["lambda.keras"], "lambda.keras does not load in Keras's safe mode"),
        (["six.keras"], "takes pictures of 6 channels. Expected 1 or 3"),
        (["none.keras"], "There is no file"),
        (["folder", "--preprocessing", "tf"], "has its preprocessing and its size with it"),
    ],
)
def test_keras_files_that_will_not_do_are_refused_in_one_line(
    arguments, message, folder, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    layers, conv = keras.layers, keras.layers.Conv2D(2, 3, activation="relu")
    if arguments[0] == "mine.keras":
        keras_model().save("mine.keras")
    elif arguments[0] == "open.keras":
        keras.Sequential([keras.Input((None, None, 3)), conv]).save("open.keras")
    elif arguments[0] == "linear.keras":
        keras.Sequential([keras.Input((9, 9, 3)), layers.Conv2D(2, 3)]).save("linear.keras")
    elif arguments[0] == "six.keras":
        keras.Sequential([keras.Input((9, 9, 6)), conv]).save("six.keras")
    elif arguments[0] == "lambda.keras":
        hostile = layers.Lambda(lambda maps: maps)
        keras.Sequential([keras.Input((9, 9, 3)), conv, hostile]).save("lambda.keras")
    Path("text.keras").write_text("no archive")
    with zipfile.ZipFile("zip.keras", "w") as archive:
        archive.writestr("config.json", "{}")
    Path("folder").mkdir()
    path, *options = arguments
    command = ["gallery", path, "--dataset", str(folder), "--output", "out", *options]

    result = CliRunner().invoke(cli, command)

    assert result.exit_code == 2, result.output
    assert message in result.output
    assert len(result.output.splitlines()) == 1
    assert not Path("out").exists()


def test_chosen_maps_alone_are_projected(trained, pictures, tmp_path):
    gallery.make(trained, pictures, tmp_path / "all", **SETTINGS)
    gallery.make(trained, pictures, tmp_path / "some", feature_maps=[3, 1], **SETTINGS)

    for found, wanted in zip(
        layers_of(tmp_path / "some"), layers_of(tmp_path / "all"), strict=True
    ):
        assert found.feature_maps.tolist() == [1, 3]
        np.testing.assert_array_equal(found.pictures, wanted.pictures[[1, 3]])
        np.testing.assert_allclose(
            found.projections,
            wanted.projections[[1, 3]],
            atol=1e-5 * np.abs(wanted.projections).max(),
        )


def test_a_silent_map_is_grey(trained, pictures, tmp_path):
    bias = trained.model.get_layer("conv3").bias
    bias.assign(np.where(np.arange(5) == 2, -1e9, np.asarray(bias)))

    gallery.make(trained, pictures, tmp_path / "out", **SETTINGS)

    found = layers_of(tmp_path / "out")[1]
    assert (found.names[2] == "").all()
    assert not found.projections[2].any()
    assert (found.patches[2] == rendering.GREY).all()
    assert "map 2: never fired" in (tmp_path / "out" / "index.html").read_text()


def test_what_is_there_already_is_not_lost(trained, pictures, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("kept")
    with pytest.raises(GalleryError, match="other holds something else"):
        gallery.make(trained, pictures, tmp_path / "other", **SETTINGS)
    assert (tmp_path / "other" / "thesis.txt").read_text() == "kept"

    output = tmp_path / "out"
    gallery.make(trained, pictures, output, **SETTINGS)
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    with pytest.raises(GalleryError, match="another top_k"):
        gallery.make(trained, pictures, output, **{**SETTINGS, "top_k": 5})
    with pytest.raises(GalleryError, match="another pictures"):
        gallery.make(trained, pictures.without([3]), output, **SETTINGS)
    trained.model.get_layer("conv1").bias.assign_add(np.ones(4))
    with pytest.raises(GalleryError, match="another model"):
        gallery.make(trained, pictures, output, **SETTINGS)
    assert before == {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}

    (output / "gallery.json").write_text("{")
    with pytest.raises(GalleryError, match="gallery.json is damaged"):
        gallery.make(trained, pictures, output, **SETTINGS)


def test_another_selection_or_size_is_another_gallery(trained, pictures, tmp_path):
    output = tmp_path / "out"
    gallery.make(trained, pictures, output, **SETTINGS)
    others = dataclasses.replace(pictures, keys=pictures.keys[::-1])
    with pytest.raises(GalleryError, match="another names"):
        gallery.make(trained, others, output, **SETTINGS)

    conv = keras.layers.Conv2D(2, 3, activation="relu", name="a")
    model = keras.Sequential([keras.Input((None, None, 3)), conv], name="one")
    gallery.make(from_keras(model, input_size=(30, 41)), pictures, tmp_path / "keras", top_k=1)
    with pytest.raises(GalleryError, match="another input_size"):
        gallery.make(from_keras(model, input_size=(41, 30)), pictures, tmp_path / "keras", top_k=1)
    strided = keras.layers.Conv2D(2, 3, strides=2, activation="relu", name="a")
    other = keras.Sequential([keras.Input((None, None, 3)), strided], name="one")
    other.set_weights(model.get_weights())
    with pytest.raises(GalleryError, match="another model"):
        gallery.make(from_keras(other, input_size=(30, 41)), pictures, tmp_path / "keras", top_k=1)


def test_what_a_first_start_left_behind_is_no_obstacle(trained, pictures, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".gallery.123.abc.json").write_text("{")
    gallery.make(trained, pictures, tmp_path / "out", **SETTINGS)
    assert (tmp_path / "out" / "index.html").exists()


def test_a_picture_that_was_lost_after_the_scan_is_named(trained, pictures, tmp_path):
    def interrupt(stage, done, total):
        if stage.startswith("projecting"):
            raise Stopped

    with pytest.raises(Stopped):
        gallery.make(trained, pictures, tmp_path / "out", on_progress=interrupt, **SETTINGS)
    with np.load(tmp_path / "out" / "scan-1of1.npz") as state:
        lost = Path(pictures.keys[state["conv3/pictures"].max()])
    lost.write_bytes(b"no picture")
    with pytest.raises(datasets.DatasetError, match=f"{lost.name} cannot be read as a picture"):
        gallery.make(trained, pictures, tmp_path / "out", **SETTINGS)


@pytest.mark.parametrize("damaged", [b"", b"PK\x03\x04 and nothing more"])
def test_damaged_layers_are_named(trained, pictures, tmp_path, damaged):
    gallery.make(trained, pictures, tmp_path / "out", **SETTINGS)
    (tmp_path / "out" / "conv1.npz").write_bytes(damaged)
    with pytest.raises(GalleryError, match="conv1.npz is damaged"):
        gallery.make(trained, pictures, tmp_path / "out", **SETTINGS)


def test_files_have_names_of_their_own():
    names = gallery.file_names(["scan-1of1", "index", "a b", "a/b", "../c", "x" * 300])
    assert names["scan-1of1"] == "layer-scan-1of1" and names["index"] == "layer-index"
    assert len(set(names.values())) == 6
    assert all(re.fullmatch(r"[\w-]{1,110}", name) for name in names.values())


def test_layers_and_maps_that_are_not_there_are_named(trained, pictures, tmp_path):
    with pytest.raises(ValueError, match="conv1, conv2, conv3. Received: layer='conv7"):
        gallery.make(trained, pictures, tmp_path / "out", layers=["conv7"])
    with pytest.raises(ValueError, match="conv1 has feature maps 0 to 3. Received: 2, 4"):
        gallery.make(trained, pictures, tmp_path / "out", feature_maps=[2, 4])
    assert not (tmp_path / "out").exists()


def test_the_command_makes_a_gallery(export_dir, folder, tmp_path):
    arguments = ["gallery", str(export_dir), "--dataset", str(folder)]
    output = tmp_path / "out"

    result = CliRunner().invoke(
        cli, [*arguments, "--output", str(output), "--layers", "conv2", "--top", "3"]
    )

    assert result.exit_code == 0, result.output
    assert result.output.splitlines()[-1] == f"Wrote {output / 'index.html'}"
    assert LayerGallery.load(output / "conv2.npz").projections.shape[:2] == (6, 3)
    assert json.loads((output / "gallery.json").read_text())["settings"]["pictures"] == COUNT
    for wrong, message in (
        (["--layers", "conv9"], "conv1, conv2, conv3. Received: layer='conv9"),
        (["--maps", "99999999999999999999"], "feature maps 0 to"),
        (["--maps", "one"], "Expected numbers such as 1,2,5. Received: one"),
        (["--top", "4", "--layers", "conv2"], "holds a gallery with another top_k"),
    ):
        result = CliRunner().invoke(cli, [*arguments, "--output", str(output), *wrong])
        assert result.exit_code == 2
        assert message in result.output
        assert len(result.output.splitlines()) == 1
    inside = CliRunner().invoke(cli, [*arguments, "--output", str(folder / "gallery")])
    assert inside.exit_code == 2
    assert "lies in the folder of the data set" in inside.output
