import json
from pathlib import Path

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
from zfkeras.trained import Trained

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
    with pytest.raises(GalleryError, match="another weights"):
        gallery.make(trained, pictures, output, **SETTINGS)
    assert before == {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}

    (output / "gallery.json").write_text("{")
    with pytest.raises(GalleryError, match="gallery.json is damaged"):
        gallery.make(trained, pictures, output, **SETTINGS)


def test_layers_and_maps_that_are_not_there_are_named(trained, pictures, tmp_path):
    with pytest.raises(ValueError, match="conv1, conv2, conv3. Received: conv7"):
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
        (["--layers", "conv9"], "conv1, conv2, conv3. Received: conv9"),
        (["--maps", "one"], "Expected numbers such as 1,2,5. Received: one"),
        (["--top", "4", "--layers", "conv2"], "holds a gallery with another top_k"),
    ):
        result = CliRunner().invoke(cli, [*arguments, "--output", str(output), *wrong])
        assert result.exit_code == 2
        assert message in result.output
        assert len(result.output.splitlines()) == 1
