import keras
import numpy as np
import pytest
import tensorflow as tf

from zfkeras.architecture import Contrast, Filtering, Pooling, Rectification
from zfkeras.constraints import FilterRMS
from zfkeras.layers import (
    ConvBlock,
    DeconvBlock,
    LocalResponseNormalization,
    MaxUnpooling2D,
    SwitchedMaxPooling2D,
)

ZF = (Filtering(6, 3, 2, 1), Rectification(), Pooling(3, 2), Contrast(alpha=0.01))
KRIZHEVSKY = (Filtering(6, 3, 2, 1), Rectification(), Contrast(alpha=0.01), Pooling(3, 2))
STAGES = pytest.mark.parametrize(
    "stages",
    [
        ZF,
        KRIZHEVSKY,
        (Filtering(6, 3),),
        (Filtering(6, 3), Rectification()),
        (Pooling(2, 2),),
        (Rectification(), Pooling(3, 2)),
        (Contrast(),),
    ],
    ids=["zf", "krizhevsky", "filtering", "rectified", "pooling", "no filtering", "contrast"],
)


def inputs(rng, batch=2):
    return rng.normal(size=(batch, 13, 16, 3)).astype(np.float32) * 4


def block_model(stages, **options):
    pictures = keras.Input((13, 16, 3))
    return keras.Model(pictures, ConvBlock(stages, name="conv1", **options)(pictures))


@STAGES
def test_a_block_emits_switches_without_changing_its_maps(rng, stages):
    block = ConvBlock(stages)
    maps = inputs(rng)

    plain = block(maps)
    activations = block(maps, emit_switches=True)

    np.testing.assert_allclose(activations["outputs"], plain, rtol=1e-6)
    assert ("switches" in activations) == any(isinstance(stage, Pooling) for stage in stages)


def test_plain_blocks_never_pool_with_switches():
    model = block_model(ZF)
    graph = tf.function(model).get_concrete_function(tf.TensorSpec((2, 13, 16, 3))).graph

    types = {operation.type for operation in graph.get_operations()}
    assert "MaxPool" in types
    assert "MaxPoolWithArgmax" not in types


def test_contrast_normalization_may_come_before_or_after_pooling(rng):
    maps = inputs(rng)
    after, before = ConvBlock(ZF), ConvBlock(KRIZHEVSKY)
    after.build(maps.shape)
    before.build(maps.shape)
    before.set_weights(after.get_weights())

    assert np.abs(after(maps) - before(maps)).max() > 1e-3
    np.testing.assert_array_equal(
        after(maps, emit_switches=True)["rectified"], before(maps, emit_switches=True)["rectified"]
    )


@STAGES
@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_a_block_survives_saving(tmp_path, rng, stages, dtype):
    model = block_model(stages, dtype=dtype, kernel_constraint=FilterRMS(0.2))

    model.save(tmp_path / "block.keras")
    revived = keras.saving.load_model(tmp_path / "block.keras")

    block = revived.get_layer("conv1")
    assert block.stages == tuple(stages)
    assert block.kernel_constraint.limit == 0.2
    for batch in (2, 5):
        maps = inputs(rng, batch)
        np.testing.assert_array_equal(
            np.asarray(revived(maps), np.float32), np.asarray(model(maps), np.float32)
        )


def test_symbolic_switches_have_the_shape_of_real_ones(rng):
    pictures = keras.Input((13, 16, 3))
    activations = ConvBlock(ZF)(pictures, emit_switches=True)
    model = keras.Model(pictures, activations)

    outputs = model(inputs(rng))

    for name, symbol in activations.items():
        assert outputs[name].shape[1:] == symbol.shape[1:]
        assert outputs[name].dtype == symbol.dtype


def test_contrast_normalization_holds_squares_that_float16_does_not():
    layer = LocalResponseNormalization(alpha=1.0, dtype="mixed_float16")
    # The square of 1000 is infinite in float16.
    maps = tf.fill((1, 1, 1, 1), tf.constant(1000, tf.float16))

    normalized = layer(maps)

    assert normalized.dtype == tf.float16
    np.testing.assert_allclose(normalized, 1000 / (2 + 1e6) ** 0.75, rtol=1e-3)


@pytest.mark.parametrize(
    "stages",
    [
        (),
        (Rectification(), Filtering(3, 3)),
        (Pooling(), Filtering(3, 3)),
        (Filtering(3, 3), Pooling(), Rectification()),
        (Filtering(3, 3), Pooling(), Pooling()),
        (Filtering(3, 3), Filtering(3, 3)),
    ],
    ids=["none", "rectified first", "pooled first", "rectified last", "pooled twice", "two"],
)
def test_other_orders_are_refused(stages):
    with pytest.raises(ValueError, match="`stages` must be filtering, rectification"):
        ConvBlock(stages)


def test_groups_must_divide_the_maps(rng):
    with pytest.raises(ValueError, match="'conv1' splits into 2 groups.*3 maps coming in"):
        block_model((Filtering(6, 3, groups=2),))


def test_the_pooling_pair_survives_saving(tmp_path, rng):
    maps = keras.Input((7, 9, 3))
    pooled, switches = SwitchedMaxPooling2D(3, 2)(maps)
    model = keras.Model(maps, MaxUnpooling2D((7, 9), overlap="max")(pooled, switches))
    values = rng.normal(size=(2, 7, 9, 3)).astype(np.float32)

    model.save(tmp_path / "pair.keras")
    revived = keras.saving.load_model(tmp_path / "pair.keras")

    np.testing.assert_array_equal(revived(values), model(values))


@pytest.mark.parametrize("output_size", [(0, 3), (3,), (2, -1)])
def test_unpooling_needs_a_size(output_size):
    with pytest.raises(ValueError, match="`output_size` must be two positive integers"):
        MaxUnpooling2D(output_size)


def test_pooling_may_not_skip_units():
    with pytest.raises(ValueError, match="units would be lost.*pool_size=2, strides=3"):
        SwitchedMaxPooling2D(2, 3)


def test_a_deconv_block_survives_saving_beside_the_block_it_mirrors(tmp_path, rng):
    pictures = keras.Input((13, 16, 3))
    block = ConvBlock(ZF, name="conv1")
    activations = block(pictures, emit_switches=True)
    back = DeconvBlock(block, (13, 16))(activations["outputs"], activations["switches"])
    model = keras.Model(pictures, back)
    values = inputs(rng)

    model.save(tmp_path / "mirror.keras")
    revived = keras.saving.load_model(tmp_path / "mirror.keras")

    np.testing.assert_array_equal(revived(values), model(values))


def test_the_mirror_of_a_linear_block_is_its_adjoint(rng):
    block = ConvBlock((Filtering(6, 5, 2, 1),))
    maps = tf.constant(inputs(rng))
    filtered = block(maps)
    cotangent = tf.constant(rng.normal(size=filtered.shape), tf.float32)

    back = DeconvBlock(block, (13, 16))(cotangent)

    # <block(x), y> = <x, mirror(y)>; the bias starts at zero.
    np.testing.assert_allclose(
        tf.reduce_sum(filtered * cotangent), tf.reduce_sum(maps * back), rtol=1e-4
    )


def test_filters_above_the_limit_are_scaled_to_it_and_others_left_alone(rng):
    kernel = rng.normal(size=(3, 5, 4, 2)).astype(np.float32)
    kernel *= np.array([0.05, 0.7], np.float32) / np.sqrt(np.mean(kernel**2, axis=(0, 1, 2)))

    constrained = np.asarray(FilterRMS(0.1)(kernel))

    np.testing.assert_allclose(constrained[..., 0], kernel[..., 0], rtol=1e-6)
    np.testing.assert_allclose(constrained[..., 1], kernel[..., 1] / 7, rtol=1e-5)
    np.testing.assert_allclose(np.sqrt(np.mean(constrained[..., 1] ** 2)), 0.1, rtol=1e-5)


def test_the_limit_must_be_positive():
    with pytest.raises(ValueError, match="limit=0"):
        FilterRMS(0)
