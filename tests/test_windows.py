"""Windows against whole pictures, which `test_deconvnet` compares with the paper in NumPy."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from conftest import random_model

from zfkeras import ops, receptive_field
from zfkeras.architecture import (
    ALEXNET,
    ZFNET,
    ZFNET_SMALL,
    Architecture,
    Block,
    Contrast,
    Dense,
    Filtering,
    Pooling,
    Rectification,
)
from zfkeras.deconvnet import Deconvnet


def headless(architecture):
    """Only what is projected, on pictures that are not square."""
    height, width = architecture.input_size
    return dataclasses.replace(
        architecture.with_input_size(height, width - 15), dense=(Dense("fc6", 2),)
    )


UNFILTERED = Architecture(
    "unfiltered",
    (150, 165),
    (
        Block("conv1", (Filtering(12, 5, 2, 1), Rectification(), Pooling(3, 2))),
        Block("conv2", (Rectification(),)),
        Block("conv3", (Pooling(2, 2), Contrast(alpha=0.1))),
        Block("conv4", (Filtering(10, 3, 1, 2), Rectification())),
        Block("conv5", (Rectification(), Contrast(alpha=0.1))),
    ),
    (),
)
NETWORKS = {
    network.name: random_model(headless(network))
    for network in (ZFNET, ALEXNET, ZFNET_SMALL, UNFILTERED)
}


def picture_of(deconvnet):
    """Noise, and flat places where equal units compete for every pooling window."""
    shape = (1, *deconvnet.model.input_shape[1:])
    picture = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    picture[:, 60:] = np.round(picture[:, 60:])
    picture[:, :, 80:140] = 0.25
    return picture


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("layer", ["conv1", "conv2", "conv3", "conv4", "conv5"])
def test_a_window_holds_what_the_whole_picture_does(name, layer):
    model = NETWORKS[name]
    height, width = receptive_field.feature_map_sizes(model.architecture)[layer]
    rows, columns = np.meshgrid([0, height // 2, height - 1], [0, width // 3, width - 1])
    rows, columns = rows.ravel().astype(np.int32), columns.ravel().astype(np.int32)
    owners, feature_maps = np.zeros(9, np.int32), np.arange(9, dtype=np.int32)
    starts = np.linspace(0.5, 2, 9).astype(np.float32)
    units = np.stack([rows, columns, feature_maps], axis=1)
    for overlap in ops.OVERLAP_RULES:
        deconvnet = Deconvnet(model, overlap)
        picture = picture_of(deconvnet)
        maps, switches = deconvnet.ascend(tf.constant(picture), layer)
        own = maps.numpy()[0, rows, columns, feature_maps]
        starts = np.where(own > 0, own, starts)
        whole = deconvnet.project_positions(maps, switches, owners, units, starts, layer).numpy()

        found = deconvnet.project_in_windows(
            picture, layer, owners, feature_maps, rows, columns, batch_size=4
        )
        ones = deconvnet.project_in_windows(
            picture, layer, owners, feature_maps, rows, columns, start="one"
        )

        np.testing.assert_allclose(found.activations, own, rtol=1e-4, atol=1e-4)
        for index, (top, left, bottom, right) in enumerate(found.windows):
            part = whole[index, max(top, 0) : bottom, max(left, 0) : right]
            expected = np.zeros_like(found.projections[index])
            expected[max(-top, 0) :, max(-left, 0) :][: part.shape[0], : part.shape[1]] = part
            limit = 1e-4 * np.abs(expected).max()
            assert limit > 0
            if own[index] > 0:
                np.testing.assert_allclose(found.projections[index], expected, atol=limit)
            else:
                assert not found.projections[index].any()
            np.testing.assert_allclose(
                ones.projections[index] * starts[index], expected, atol=limit
            )
            # Nothing of the whole projection lies elsewhere.
            assert np.count_nonzero(whole[index]) == np.count_nonzero(part)


def test_units_of_several_pictures_come_in_any_order():
    deconvnet = Deconvnet(NETWORKS["zfnet-small"])
    pictures = np.concatenate([picture_of(deconvnet), -picture_of(deconvnet)])
    owners, feature_maps = np.array([1, 0, 1, 1]), np.array([3, 3, 0, 7])
    rows, columns = np.array([5, 5, 0, 2]), np.array([1, 1, 0, 9])

    found = deconvnet.project_in_windows(
        pictures, "conv3", owners, feature_maps, rows, columns, batch_size=3
    )

    for index, owner in enumerate(owners):
        alone = deconvnet.project_units(
            pictures[[owner]], "conv3", feature_maps[index], rows[index], columns[index]
        )
        np.testing.assert_allclose(found.activations[index], alone.activations[0], rtol=1e-5)
        top, left, bottom, right = found.windows[index]
        np.testing.assert_allclose(
            found.projections[index][max(-top, 0) :, max(-left, 0) :],
            alone.projections[0, max(top, 0) : bottom, max(left, 0) : right],
            atol=1e-5 * np.abs(alone.projections).max(),
        )
