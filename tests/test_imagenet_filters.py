"""AlexNet with filters trained on ImageNet: the quickest way to see a deconvnet go wrong."""

import dataclasses
import io
import os
import tarfile
from pathlib import Path

import keras
import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from zfkeras import gallery, rendering
from zfkeras.architecture import ALEXNET, Contrast
from zfkeras.correspondence import RANDOM, CorrespondenceProbe, read_parts
from zfkeras.data import datasets
from zfkeras.data.pictures import read_picture
from zfkeras.deconvnet import Deconvnet
from zfkeras.layers import LocalResponseNormalization
from zfkeras.mirror import Mirror
from zfkeras.models import ZFNet
from zfkeras.trained import Trained

pytestmark = pytest.mark.data

# Caffe's constants, in TensorFlow's convention for alpha, and its mean colour as blue, green, red.
CONTRAST = Contrast(radius=2, bias=1.0, alpha=2e-5, beta=0.75)
MEAN_COLOUR = np.array([104, 117, 123], np.float32)[::-1]


@pytest.fixture(scope="module")
def deconvnet():
    blocks = tuple(
        dataclasses.replace(
            block,
            stages=tuple(
                CONTRAST if isinstance(stage, Contrast) else stage for stage in block.stages
            ),
        )
        for block in ALEXNET.blocks
    )
    # No fully connected layers come with these filters.
    model = ZFNet(dataclasses.replace(ALEXNET, blocks=blocks, dense=()), 2, filter_rms=None)
    path = Path(os.environ["ZFKERAS_DATA"]) / "alexnet_conv_ilsvrc12.npz"
    with np.load(path) as filters:
        for name in model.feature_layers:
            kernel = filters[f"{name}_kernel_q"].astype(np.float32) / 256
            if name == "conv1":
                kernel = kernel[:, :, ::-1]  # Trained on blue, green, red.
            model.get_layer(name).set_weights([kernel, filters[f"{name}_bias"]])
    return Deconvnet(model)


@pytest.fixture(scope="module")
def pictures():
    """The first validation picture of every Imagenette class, uint8 `(10, 227, 227, 3)`."""
    chosen = {}
    with tarfile.open(Path(os.environ["ZFKERAS_DATA"]) / "imagenette160.tar") as archive:
        for member in sorted(archive.getmembers(), key=lambda member: member.name):
            parts = member.name.split("/")
            if member.isfile() and parts[-3] == "val" and parts[-2] not in chosen:
                picture = read_picture(io.BytesIO(archive.extractfile(member).read()))
                side = min(picture.shape[:2])
                top, left = (np.array(picture.shape[:2]) - side) // 2
                square = Image.fromarray(picture[top : top + side, left : left + side])
                chosen[parts[-2]] = np.asarray(square.resize((227, 227)))
    return np.stack(list(chosen.values()))


@pytest.fixture(scope="module")
def projected(deconvnet, pictures):
    inputs = pictures.astype(np.float32) - MEAN_COLOUR
    return {
        layer: deconvnet.project_strongest(inputs, layer, top_k=3)
        for layer in deconvnet.feature_layers
    }


def test_the_same_network_in_plain_keras_projects_the_same(deconvnet, pictures, projected):
    """What a user would bring: Keras's own layers, the mean colour taken off inside."""
    layers = keras.layers
    inputs = keras.Input((227, 227, 3))
    maps = layers.Rescaling(1.0, offset=(-MEAN_COLOUR).tolist())(inputs)
    for block in ALEXNET.blocks:
        filtering = block.stages[0]
        maps = layers.Conv2D(
            filtering.maps,
            filtering.kernel_size,
            filtering.strides,
            padding="same" if filtering.padding else "valid",
            groups=filtering.groups,
            activation="relu",
            name=block.name,
        )(maps)
        if block.name in ("conv1", "conv2"):
            maps = LocalResponseNormalization(**dataclasses.asdict(CONTRAST))(maps)
            maps = layers.MaxPooling2D(3, 2)(maps)
    model = keras.Model(inputs, maps)
    for layer in deconvnet.feature_layers:
        model.get_layer(layer).set_weights(deconvnet.model.get_layer(layer).get_weights())
    mirror = Mirror(model)

    assert mirror.feature_layers == deconvnet.feature_layers
    for layer, expected in projected.items():
        found = mirror.project_strongest(pictures, layer, top_k=3)
        for name in ("feature_maps", "rows", "columns", "boxes", "windows"):
            np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
        limit = 1e-5 * np.abs(expected.projections).max()
        np.testing.assert_allclose(found.projections, expected.projections, atol=limit)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Every fourth validation picture of Imagenette."""
    root = tmp_path_factory.mktemp("imagenette")
    with tarfile.open(Path(os.environ["ZFKERAS_DATA"]) / "imagenette160.tar") as archive:
        members = sorted(
            (
                member
                for member in archive.getmembers()
                if member.isfile() and member.name.split("/")[-3] == "val"
            ),
            key=lambda member: member.name,
        )
        for member in members[::4]:
            *_, split, class_name, name = member.name.split("/")
            path = root / split / class_name / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(archive.extractfile(member).read())
    return root


def test_a_gallery_shows_what_maps_have_in_common(deconvnet, folder, tmp_path):
    """What excites a map of a high layer is of one kind (section 4.1)."""
    mean_image = np.broadcast_to(MEAN_COLOUR, (227, 227, 3)).copy()
    pictures = datasets.load(str(folder), "validation", 227)
    layers, maps = ("conv3", "conv5"), range(0, 256, 4)
    gallery.make(
        Trained(deconvnet.model, mean_image), pictures, tmp_path / "out", layers, feature_maps=maps
    )

    mixed = np.random.default_rng(0).permutation(pictures.labels)
    for layer in layers:
        found = gallery.LayerGallery.load(tmp_path / "out" / f"{layer}.npz")
        assert found.projections.shape[:2] == (64, 9)
        of_one_class, by_chance = (
            np.mean([np.bincount(labels[row]).max() / 9 for row in found.pictures])
            for labels in (pictures.labels, mixed)
        )
        # What made a unit fire is in its own patch, and not in another one.
        own, other = [], []
        for index in range(64):
            magnitude = np.abs(found.projections[index]).sum(axis=3).ravel()
            for kept, patches in ((own, found.patches[index]), (other, found.patches[index - 7])):
                rows, columns = np.gradient(patches.astype(np.float64).mean(axis=3), axis=(1, 2))
                kept.append(np.corrcoef(magnitude, np.hypot(rows, columns).ravel())[0, 1])
        # Measured: 0.43 and 0.46 against 0.28 and 0.30; 0.18 and 0.17 against 0.05 and 0.08.
        assert of_one_class > 1.25 * by_chance, layer
        assert np.mean(own) > 1.5 * np.mean(other), layer


def test_sheets_can_be_drawn_for_people_to_look_at(projected, pictures, tmp_path):
    for layer, projections in projected.items():
        sheet = rendering.projection_sheet(
            projections.projections,
            projections.windows,
            pictures[projections.pictures],
            columns=6,
        )
        rendering.save(sheet, tmp_path / f"{layer}.png")

        drawn = sheet[:, : (sheet.shape[1] - 4 * rendering.GAP) // 2]
        # Every projection at full contrast, around grey.
        assert drawn.min() <= 1, layer
        assert abs(drawn.mean() - rendering.GREY) < 20, layer


def test_different_pictures_excite_different_maps(projected):
    for layer in ("conv3", "conv4", "conv5"):
        strongest = projected[layer].feature_maps[::3]

        assert len(set(strongest)) >= 5, layer


def test_first_layer_projections_are_the_filters_themselves(deconvnet, projected):
    """One unit's projection is its filter times its activation: an edge or a colour."""
    kernel = np.asarray(deconvnet.conv_blocks[0].kernel)
    conv1 = projected["conv1"]

    for i in range(len(conv1)):
        top, left, bottom, right = conv1.boxes[i]
        cut = conv1.projections[i, top:bottom, left:right]
        expected = conv1.activations[i] * kernel[..., conv1.feature_maps[i]]
        np.testing.assert_allclose(cut, expected, rtol=1e-4, atol=1e-3)


def test_projections_look_like_the_picture_where_they_speak(projected, pictures):
    """The switches carry the picture's layout, so a projection follows its edges (section 2.1).

    Its magnitude is compared with the picture's gradient; noise or a wrong transposition would
    not correlate with the patch it came from more than with another picture's patch.
    """
    lightness = pictures.astype(np.float64).mean(axis=3)
    rows, columns = np.gradient(lightness, axis=(1, 2))
    edges = np.hypot(rows, columns)

    for layer in ("conv2", "conv3", "conv4", "conv5"):
        projections, own, other = projected[layer], [], []
        for i, picture in enumerate(projections.pictures):
            top, left, bottom, right = projections.boxes[i]
            magnitude = np.abs(projections.projections[i]).sum(axis=2)[top:bottom, left:right]
            for kept, index in ((own, picture), (other, (picture + 5) % 10)):
                patch = edges[index, top:bottom, left:right]
                kept.append(np.corrcoef(magnitude.ravel(), patch.ravel())[0, 1])

        # Measured: 0.15 to 0.18 with the own picture, 0.01 to 0.03 with another.
        assert np.mean(own) > 0.1, (layer, np.mean(own))
        assert np.mean(own) > 4 * np.mean(other), (layer, np.mean(own), np.mean(other))


def test_layer_5_knows_parts_of_dogs(deconvnet, imagenette):
    """Table 1 with ImageNet's filters, 227 x 227 pictures, eleven springers.

    Measured, mean: right eye 0.122, left eye 0.118, nose 0.170, random 0.124; in the paper 0.067,
    0.069, 0.079 and 0.107. So the paper's own measure does not tell eyes from random places here,
    and noses are less consistent: these faces are neither of one size nor at one place, and more
    changes where there is more to see. Of the places that do change: 0.895, 0.895, 0.908 and 0.949.
    """
    network = Trained(deconvnet.model, np.broadcast_to(MEAN_COLOUR, (227, 227, 3)))
    parts = read_parts(ROOT / "tests/data/dog_parts.csv")
    probe = CorrespondenceProbe(network, ["last_maps"])

    seen, boxes = probe.look(parts, lambda name: read_picture(imagenette / "val" / name))
    *found, at_random = probe(seen, boxes, seed=0)

    assert at_random.part == RANDOM and at_random.layer == "conv5"
    for one in found:
        if one.part != RANDOM:
            assert one.mean_of_changed < at_random.mean_of_changed - 0.02
