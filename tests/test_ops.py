import numpy as np
import pytest
import tensorflow as tf

from reference import deconvnet as reference
from zfkeras import ops
from zfkeras.architecture import Contrast, Filtering

WINDOWS = pytest.mark.parametrize(
    ("size", "strides"),
    [(2, 2), (3, 2), (3, 3), (4, 3), (5, 2)],
    ids=["disjoint", "overlapping", "thirds", "far padding", "wide"],
)
SIZES = pytest.mark.parametrize("side", [(7, 9), (8, 10), (9, 6), (11, 12)], ids=str)


def feature_maps(rng, side, ties):
    maps = rng.normal(size=(2, *side, 3))
    if ties:
        # Rectified and rounded: many equal maxima, and whole windows of zeros.
        maps = np.maximum(np.round(maps), 0)
        maps[:, :5, :5] = 0
    return maps.astype(np.float32)


@WINDOWS
@SIZES
@pytest.mark.parametrize("ties", [False, True], ids=["distinct", "ties and zeros"])
def test_switches_are_those_of_a_numpy_argmax(rng, side, size, strides, ties):
    maps = feature_maps(rng, side, ties)

    pooled, switches = ops.max_pool_with_switches(tf.constant(maps), size, strides)

    for picture in range(2):
        expected, expected_switches = reference.pool(maps[picture], size, strides)
        np.testing.assert_array_equal(pooled[picture], expected.astype(np.float32))
        np.testing.assert_array_equal(switches[picture], expected_switches)


@WINDOWS
@SIZES
def test_plain_pooling_equals_pooling_with_switches(rng, side, size, strides):
    maps = tf.constant(feature_maps(rng, side, ties=False))

    pooled, _ = ops.max_pool_with_switches(maps, size, strides)

    np.testing.assert_array_equal(ops.max_pool(maps, size, strides), pooled)


def test_negative_maps_are_not_beaten_by_the_border(rng):
    maps = -np.abs(feature_maps(rng, (8, 8), ties=False)) - 1

    pooled, switches = ops.max_pool_with_switches(tf.constant(maps), 4, 3)

    assert pooled.numpy().max() < 0
    assert switches.numpy().max() < 8 * 8 * 3


@WINDOWS
@SIZES
@pytest.mark.parametrize("ties", [False, True], ids=["distinct", "ties and zeros"])
def test_unpooling_is_the_adjoint_of_max_pooling(rng, side, size, strides, ties):
    maps = tf.constant(feature_maps(rng, side, ties))
    pooled, switches = ops.max_pool_with_switches(maps, size, strides)
    cotangent = tf.constant(rng.normal(size=pooled.shape), tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(maps)
        pooled = ops.max_pool(maps, size, strides)

    unpooled = ops.max_unpool(cotangent, switches, side)

    gradient = tape.gradient(pooled, maps, output_gradients=cotangent)
    np.testing.assert_allclose(unpooled, gradient, atol=1e-5)


@WINDOWS
@pytest.mark.parametrize("overlap", ops.OVERLAP_RULES)
@pytest.mark.parametrize("ties", [False, True], ids=["distinct", "ties and zeros"])
def test_unpooling_equals_the_slow_loop(rng, size, strides, overlap, ties):
    maps = feature_maps(rng, (9, 10), ties)
    pooled, switches = ops.max_pool_with_switches(tf.constant(maps), size, strides)
    signal = rng.normal(size=pooled.shape).astype(np.float32)

    unpooled = ops.max_unpool(tf.constant(signal), switches, (9, 10), overlap)

    for picture in range(2):
        expected = reference.unpool(
            signal[picture], switches[picture].numpy(), maps[picture].shape, overlap
        )
        np.testing.assert_allclose(unpooled[picture], expected, atol=1e-6)


def test_the_rules_differ_where_windows_share_a_maximum():
    maps = np.zeros((1, 5, 5, 1), np.float32)
    maps[0, 2, 2, 0] = 1
    pooled, switches = ops.max_pool_with_switches(tf.constant(maps), 3, 2)

    summed = ops.max_unpool(pooled, switches, (5, 5), "sum")
    largest = ops.max_unpool(pooled, switches, (5, 5), "max")

    assert summed[0, 2, 2, 0] == 4
    assert largest[0, 2, 2, 0] == 1


def test_an_unknown_rule_is_named():
    with pytest.raises(ValueError, match="sum, max.*overlap='mean'"):
        ops.max_unpool(tf.zeros((1, 1, 1, 1)), tf.zeros((1, 1, 1, 1), tf.int64), (1, 1), "mean")


FILTERINGS = pytest.mark.parametrize(
    ("kernel_size", "strides", "padding", "groups"),
    [(3, 1, 1, 1), (5, 1, 2, 2), (7, 2, 1, 1), (5, 2, 0, 2), (3, 3, 2, 1), (11, 4, 0, 1)],
    ids=str,
)


@FILTERINGS
@pytest.mark.parametrize("channels", [2, 6], ids=["few", "many"])
def test_transposed_filters_are_the_adjoint_of_filtering(
    rng, kernel_size, strides, padding, groups, channels
):
    maps = tf.constant(rng.normal(size=(2, 14, 17, channels)), tf.float32)
    shape = (kernel_size, kernel_size, channels // groups, 6)
    kernel = tf.constant(rng.normal(size=shape), tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(maps)
        filtered = ops.filter_maps(maps, kernel, tf.zeros(6), strides, padding)
    cotangent = tf.constant(rng.normal(size=filtered.shape), tf.float32)

    transposed = ops.transpose_filters(cotangent, kernel, (14, 17), strides, padding, groups)

    gradient = tape.gradient(filtered, maps, output_gradients=cotangent)
    np.testing.assert_allclose(transposed, gradient, atol=1e-4)


@FILTERINGS
def test_a_single_unit_lays_down_its_filter(rng, kernel_size, strides, padding, groups):
    kernel = tf.constant(rng.normal(size=(kernel_size, kernel_size, 4 // groups, 6)), tf.float32)
    feature_maps = tf.constant([4, 0, 3])

    filters = ops.pick_filters(kernel, feature_maps, groups)

    signal = tf.one_hot(feature_maps, 6)[:, None, None, :]
    expected = ops.transpose_filters(signal, kernel, (kernel_size, kernel_size), groups=groups)
    np.testing.assert_array_equal(filters, expected)


@pytest.mark.parametrize(("size", "strides"), [(2, 2), (3, 2), (3, 1)])
def test_unpooling_without_switches_is_unpooling(rng, size, strides):
    # Whole numbers: many windows have several maxima, of which the first counts.
    maps = tf.constant(rng.integers(0, 4, (2, 9, 9, 5)), tf.float32)
    maps = maps[:, : 8 + size % 2, : 8 + size % 2]
    pooled, switches = ops.max_pool_with_switches(maps, size, strides)
    signal = tf.constant(rng.normal(size=pooled.shape), tf.float32)

    unpooled = ops.unpool_to_maxima(signal, maps, pooled, size, strides)

    expected = ops.max_unpool(signal, switches, maps.shape[1:3])
    np.testing.assert_allclose(unpooled, expected, atol=1e-5)


@FILTERINGS
def test_filtering_equals_the_slow_loop(rng, kernel_size, strides, padding, groups):
    maps = rng.normal(size=(14, 17, 4))
    kernel = rng.normal(size=(kernel_size, kernel_size, 4 // groups, 6))
    bias = rng.normal(size=6)
    stage = Filtering(6, kernel_size, strides, padding, groups)

    filtered = ops.filter_maps(
        tf.constant(maps[None], tf.float32),
        tf.constant(kernel, tf.float32),
        tf.constant(bias, tf.float32),
        strides,
        padding,
    )

    expected = reference.convolve(maps, kernel, bias, stage)
    np.testing.assert_allclose(filtered[0], expected, atol=1e-4)


@pytest.mark.parametrize("radius", [1, 2, 4, 9])
@pytest.mark.parametrize("beta", [0.5, 0.75, 0.6])
def test_contrast_normalization_equals_tensorflow_and_the_slow_loop(rng, radius, beta):
    maps = rng.normal(size=(2, 3, 4, 7)).astype(np.float32) * 30
    stage = Contrast(radius, 2.0, 0.01, beta)

    normalized = ops.normalize_contrast(tf.constant(maps), radius, 2.0, 0.01, beta)

    library = tf.nn.local_response_normalization(maps, radius, 2.0, 0.01, beta)
    np.testing.assert_allclose(normalized, library, rtol=1e-5)
    np.testing.assert_allclose(normalized[0], reference.normalize(maps[0], stage), rtol=1e-5)


@pytest.mark.parametrize("radius", [1, 4, 9])
@pytest.mark.parametrize("beta", [0.5, 0.75, 0.6])
def test_the_gradient_of_contrast_normalization_is_tensorflows(rng, radius, beta):
    maps, upstream = tf.constant(rng.normal(size=(2, 2, 3, 4, 7)).astype(np.float32) * 30)
    gradients = []
    for normalize in (ops.normalize_contrast, tf.nn.local_response_normalization):
        with tf.GradientTape() as tape:
            tape.watch(maps)
            normalized = normalize(maps, radius, 2.0, 0.01, beta)
        gradients.append(tape.gradient(normalized, maps, upstream))

    np.testing.assert_allclose(*gradients, rtol=1e-4, atol=1e-4)


def test_contrast_normalization_of_half_floats(rng):
    maps = (rng.normal(size=(2, 3, 4, 7)) * 300).astype(np.float32)
    exact = ops.normalize_contrast(tf.constant(maps), 2, 2.0, 0.01, 0.75)

    for dtype, computed in ((tf.bfloat16, tf.bfloat16), (tf.float16, tf.float32)):
        normalized = ops.normalize_contrast(tf.cast(maps, dtype), 2, 2.0, 0.01, 0.75)
        assert normalized.dtype == computed
        # Six roundings to 8 bits, or one to 11, and the power of 0.75 of what was rounded.
        tolerance = 0.02 if dtype == tf.bfloat16 else 0.002
        np.testing.assert_allclose(tf.cast(normalized, tf.float32), exact, rtol=tolerance)
