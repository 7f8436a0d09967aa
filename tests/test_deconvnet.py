import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import random_model

from reference import deconvnet as reference
from zfkeras import ops, receptive_field, windows
from zfkeras.architecture import Contrast, Filtering, Pooling
from zfkeras.architecture import Rectification as Rectified
from zfkeras.deconvnet import Deconvnet

LAYERS = ("conv1", "conv2", "conv3")


@pytest.fixture
def pictures(rng, tiny):
    return rng.normal(size=(3, *tiny.input_size, 3)).astype(np.float32)


def weights_of(model):
    return {
        block.name: tuple(np.asarray(weight, np.float64) for weight in block.get_weights())
        for block in Deconvnet(model).conv_blocks
    }


def without_contrast(architecture):
    return dataclasses.replace(
        architecture,
        blocks=tuple(
            dataclasses.replace(
                block,
                stages=tuple(stage for stage in block.stages if not isinstance(stage, Contrast)),
            )
            for block in architecture.blocks
        ),
    )


def differentiate(model, pictures, layer, feature_maps, rectifier_gradient):
    """Projection of each picture's strongest unit of a map, by automatic differentiation."""

    @tf.custom_gradient
    def rectify(maps):
        return tf.nn.relu(maps), lambda above: rectifier_gradient(above, maps)

    inputs = tf.constant(pictures)
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        maps = inputs
        for block in Deconvnet(model).conv_blocks:
            for stage in block.stages:
                match stage:
                    case Filtering(strides=strides, padding=padding):
                        kernel, bias = block.kernel.value, block.bias.value
                        maps = ops.filter_maps(maps, kernel, bias, strides, padding)
                    case Rectified():
                        maps = rectify(maps)
                    case Pooling(size=size, strides=strides) if block.name != layer:
                        maps = ops.max_pool(maps, size, strides)
            if block.name == layer:
                break
        chosen = [maps[i, ..., feature_map] for i, feature_map in enumerate(feature_maps)]
        strongest = tf.stack([tf.reduce_max(one) for one in chosen])
    return tape.gradient(strongest, inputs, output_gradients=strongest).numpy()


RECTIFIERS = {
    "deconvnet": lambda above, maps: tf.nn.relu(above),
    "gradient": lambda above, maps: above * tf.cast(maps > 0, above.dtype),
    "guided": lambda above, maps: tf.nn.relu(above) * tf.cast(maps > 0, above.dtype),
}


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("overlap", ops.OVERLAP_RULES)
@pytest.mark.parametrize("start", ["activation", "one"])
def test_a_projection_equals_the_paper_in_numpy(tiny, tiny_model, pictures, layer, overlap, start):
    deconvnet = Deconvnet(tiny_model, overlap)
    height, width = receptive_field.feature_map_sizes(tiny)[layer]
    units = {"feature_maps": [0, 3, 2], "rows": [0, 3, height - 1], "columns": [1, 4, width - 1]}

    projected = deconvnet.project_units(pictures, layer, **units, start=start)

    for i, (feature_map, row, column) in enumerate(zip(*units.values(), strict=True)):
        maps, expected = reference.project(
            tiny,
            weights_of(tiny_model),
            pictures[i],
            layer,
            feature_map,
            row,
            column,
            None if start == "activation" else 1.0,
            overlap,
        )
        np.testing.assert_allclose(
            projected.activations[i], maps[row, column, feature_map], atol=1e-4
        )
        scale = max(np.abs(expected).max(), 1e-6)
        np.testing.assert_allclose(projected.projections[i] / scale, expected / scale, atol=1e-4)


@pytest.mark.parametrize("layer", LAYERS)
def test_without_contrast_a_projection_is_the_gradient_with_another_rectifier(
    tiny, pictures, layer
):
    model = random_model(without_contrast(tiny))
    feature_maps = [1, 0, 3]

    projected = Deconvnet(model).project_feature_maps(pictures, layer, feature_maps)

    expected = differentiate(model, pictures, layer, feature_maps, RECTIFIERS["deconvnet"])
    scale = np.abs(expected).max()
    np.testing.assert_allclose(projected.projections / scale, expected / scale, atol=1e-5)


def test_deconvnet_gradient_and_guided_backpropagation_all_differ(tiny, pictures):
    model = random_model(without_contrast(tiny))
    projections = {
        name: differentiate(model, pictures, "conv3", [1, 0, 3], rectifier)
        for name, rectifier in RECTIFIERS.items()
    }

    projected = Deconvnet(model).project_feature_maps(pictures, "conv3", [1, 0, 3]).projections

    scale = np.abs(projected).max()
    assert np.abs(projections["deconvnet"] - projected).max() < 1e-5 * scale
    assert np.abs(projections["gradient"] - projected).max() > 0.05 * scale
    assert np.abs(projections["guided"] - projected).max() > 0.05 * scale
    assert np.abs(projections["guided"] - projections["gradient"]).max() > 0.05 * scale


@pytest.mark.parametrize("layer", LAYERS)
def test_the_strongest_maps_come_first_and_each_from_its_own_picture(tiny_model, pictures, layer):
    deconvnet = Deconvnet(tiny_model)
    maps = deconvnet.ascend(pictures, layer)[0].numpy()

    projected = deconvnet.project_strongest(pictures, layer, top_k=3)

    assert projected.pictures.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    for i, picture in enumerate(projected.pictures):
        peaks = maps[picture].max(axis=(0, 1))
        assert projected.feature_maps[i] == np.argsort(-peaks, kind="stable")[i % 3]
        unit = projected.rows[i], projected.columns[i], projected.feature_maps[i]
        assert projected.activations[i] == maps[picture][unit] == peaks[unit[2]]


def test_the_number_projected_at_once_changes_nothing(tiny_model, pictures):
    deconvnet = Deconvnet(tiny_model)

    together = deconvnet.project_strongest(pictures, "conv3", top_k=4)
    apart = deconvnet.project_strongest(pictures, "conv3", top_k=4, batch_size=2)

    for name, values in dataclasses.asdict(together).items():
        if name != "layer":
            np.testing.assert_allclose(getattr(apart, name), values, atol=1e-5)


@pytest.mark.parametrize("layer", LAYERS)
def test_a_projection_is_silent_outside_its_box(tiny, tiny_model, pictures, layer):
    height, width = receptive_field.feature_map_sizes(tiny)[layer]
    corners = {"rows": [0, height - 1, 1], "columns": [0, width - 1, width - 2]}

    projected = Deconvnet(tiny_model).project_units(
        pictures, layer, feature_maps=0, **corners, start="one"
    )

    for projection, box in zip(projected.projections, projected.boxes, strict=True):
        top, left, bottom, right = box
        assert np.abs(projection).max() > 0
        projection[top:bottom, left:right] = 0
        assert np.abs(projection).max() == 0


def test_equal_units_resolve_to_the_first(tiny_model, tiny):
    black = np.zeros((1, *tiny.input_size, 3), np.float32)
    for block in Deconvnet(tiny_model).conv_blocks:
        block.bias.assign(np.ones(block.bias.shape))

    projected = Deconvnet(tiny_model).project_strongest(black, "conv1", top_k=4)

    assert projected.feature_maps.tolist() == [0, 1, 2, 3]
    assert projected.rows.tolist() == projected.columns.tolist() == [0] * 4


def test_biases_play_no_part_on_the_way_down(tiny_model, pictures):
    deconvnet = Deconvnet(tiny_model)
    _, switches = deconvnet.ascend(pictures, "conv3")
    signal = tf.random.stateless_normal((3, 7, 9, 5), (0, 0))
    before = deconvnet.descend(signal, switches, "conv3")

    for block in deconvnet.conv_blocks:
        block.bias.assign(block.bias + 100)

    np.testing.assert_array_equal(deconvnet.descend(signal, switches, "conv3"), before)
    assert np.abs(deconvnet.descend(0 * signal, switches, "conv3")).max() == 0


def test_contrast_normalization_is_skipped_on_the_way_down(tiny, tiny_model, pictures):
    without = random_model(without_contrast(tiny))
    deconvnet, plain = Deconvnet(tiny_model), Deconvnet(without)
    _, switches = deconvnet.ascend(pictures, "conv3")
    signal = tf.random.stateless_normal((3, 7, 9, 5), (0, 0))

    np.testing.assert_array_equal(
        deconvnet.descend(signal, switches, "conv3"), plain.descend(signal, switches, "conv3")
    )


def test_half_precision_models_are_projected_in_float32(tiny, pictures):
    model = random_model(tiny, dtype="mixed_bfloat16")

    projected = Deconvnet(model).project_strongest(pictures, "conv3", top_k=2)

    exact = Deconvnet(random_model(tiny)).project_units(
        pictures,
        "conv3",
        projected.feature_maps[::2],
        projected.rows[::2],
        projected.columns[::2],
    )
    assert projected.projections.dtype == np.float32
    # bfloat16 keeps 8 bits of every activation.
    np.testing.assert_allclose(projected.activations[::2], exact.activations, rtol=0.1)


def test_the_model_is_not_changed(tiny_model, pictures):
    before = tiny_model(pictures).numpy(), tiny_model.get_config(), tiny_model.get_weights()

    Deconvnet(tiny_model, "max").project_strongest(pictures, "conv3", top_k=3)

    np.testing.assert_array_equal(tiny_model(pictures), before[0])
    assert tiny_model.get_config() == before[1]
    for weight, kept in zip(tiny_model.get_weights(), before[2], strict=True):
        np.testing.assert_array_equal(weight, kept)


def test_a_deconvnet_survives_saving(tmp_path, tiny_model, pictures):
    deconvnet = Deconvnet(tiny_model, overlap="max")
    deconvnet.project_strongest(pictures, "conv3", top_k=2)  # Its graphs are not in the way.
    deconvnet.save(tmp_path / "deconvnet.keras")

    revived = keras.saving.load_model(tmp_path / "deconvnet.keras")

    for batch in (1, 3):
        np.testing.assert_array_equal(
            revived.project_strongest(pictures[:batch], "conv3", 2).projections,
            deconvnet.project_strongest(pictures[:batch], "conv3", 2).projections,
        )


def test_calling_a_deconvnet_gives_the_same_as_its_methods(tiny_model, pictures):
    deconvnet = Deconvnet(tiny_model)

    called = deconvnet(pictures, tf.constant([2, -1, 0]), layer="conv2")

    projected = deconvnet.project_feature_maps(pictures, "conv2", [2, -1, 0])
    for name in called:
        np.testing.assert_allclose(called[name], getattr(projected, name), atol=1e-5)


def test_a_layer_is_traced_once_for_any_number_of_pictures(tiny_model, pictures, monkeypatch):
    deconvnet, traced, chain = Deconvnet(tiny_model), [], windows.WindowedChain
    for name in ("ascend_whole", "project_below"):
        method = getattr(chain, name)
        monkeypatch.setattr(
            chain,
            name,
            lambda *arguments, name=name, method=method: traced.append(name) or method(*arguments),
        )

    for count in (1, 2, 3):
        for top_k in (1, 4):
            deconvnet.project_strongest(pictures[:count], "conv3", top_k)

    assert traced == ["ascend_whole", "project_below"]


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("feature_maps", [[[1, 3], [0, 1], [3, 3]], [[-1, 2], [0, -2], [1, 1]]])
def test_searching_first_and_projecting_then_is_the_same(tiny_model, pictures, layer, feature_maps):
    deconvnet = Deconvnet(tiny_model)

    found = deconvnet.project_feature_maps(pictures, layer, feature_maps, batch_size=4)
    # One projection at a time, which is fewer than a picture has.
    apart = deconvnet.project_feature_maps(pictures, layer, feature_maps, batch_size=1)

    for name in ("feature_maps", "rows", "columns", "boxes", "windows", "pictures"):
        np.testing.assert_array_equal(getattr(found, name), getattr(apart, name))
    np.testing.assert_allclose(found.activations, apart.activations, rtol=1e-5)
    limit = 1e-6 * np.abs(apart.projections).max()
    np.testing.assert_allclose(found.projections, apart.projections, atol=limit)


def test_numbers_can_be_saved(tmp_path, tiny_model, pictures):
    projected = Deconvnet(tiny_model).project_strongest(pictures, "conv3", top_k=2)

    projected.save(tmp_path / "numbers.npz", picture=pictures[0])

    with np.load(tmp_path / "numbers.npz") as numbers:
        np.testing.assert_array_equal(numbers["projections"], projected.projections)
        np.testing.assert_array_equal(numbers["boxes"], projected.boxes)
        np.testing.assert_array_equal(numbers["picture"], pictures[0])
        assert str(numbers["layer"]) == "conv3"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("conv9", 0, 0, 0), "`layer` must be one of conv1, conv2, conv3. .*'conv9'"),
        (("conv3", 5, 0, 0), "`feature_maps` of conv3 must lie between 0 and 4. Received: .5"),
        (("conv3", -1, 0, 0), "`feature_maps` of conv3"),
        (("conv3", 0, 7, 0), "`rows` of conv3 must lie between 0 and 6"),
        (("conv3", 0, 0, [0, 9, 0]), "`columns` of conv3 must lie between 0 and 8"),
        (("conv3", 0, 0, 0, "two"), "`start` must be one of activation, one"),
    ],
    ids=["layer", "map", "negative map", "row", "column", "start"],
)
def test_units_that_are_not_there_are_named(tiny_model, pictures, arguments, message):
    with pytest.raises(ValueError, match=message):
        Deconvnet(tiny_model).project_units(pictures, *arguments)


@pytest.mark.parametrize("top_k", [0, 6])
def test_more_maps_than_there_are_cannot_be_ranked(tiny_model, pictures, top_k):
    with pytest.raises(ValueError, match=f"`top_k` of conv3.*1 and 5. Received: top_k={top_k}"):
        Deconvnet(tiny_model).project_strongest(pictures, "conv3", top_k)


def test_pictures_of_another_size_are_refused(tiny_model):
    with pytest.raises(ValueError, match=r"shape \(batch, 29, 37, 3\).*\(1, 37, 29, 3\)"):
        Deconvnet(tiny_model).project_strongest(np.zeros((1, 37, 29, 3)), "conv1", 2)


def test_models_without_blocks_are_refused():
    model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(2, 3)], name="foreign")

    with pytest.raises(ValueError, match="ConvBlock layers. Received: 'foreign'"):
        Deconvnet(model)
