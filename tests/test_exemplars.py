import numpy as np
import pytest
import tensorflow as tf

from zfkeras.deconvnet import Deconvnet
from zfkeras.exemplars import Exemplars, Scan
from zfkeras.training.strategy import make_strategy

LAYERS = ("conv1", "conv2", "conv3")
COUNT = 40


@pytest.fixture
def coarse_model(tiny_model):
    """Small whole numbers everywhere in the first layer: its units tie all the time, exactly."""
    for weight in tiny_model.get_layer("conv1").weights:
        weight.assign(np.round(np.asarray(weight) * 2))
    return tiny_model


@pytest.fixture
def pictures(rng, tiny):
    return rng.integers(-2, 3, (COUNT, *tiny.input_size, 3)).astype(np.float32)


def scan(model, pictures, numbers=None, batch_size=7, **options):
    numbers = np.arange(len(pictures)) if numbers is None else numbers
    scanning = Scan(Deconvnet(model), **options)
    for first in range(0, len(pictures), batch_size):
        chunk = slice(first, first + batch_size)
        scanning.update(tf.constant(pictures[chunk]), tf.constant(numbers[chunk], tf.int64))
    return scanning.exemplars


def brute_force(model, pictures, layer, top_k, repeats):
    """All units in memory, sorted: `(activation, picture, row, column)` of every feature map."""
    maps = Deconvnet(model).ascend(tf.constant(pictures), layer)[0].numpy()
    found = []
    for feature_map in range(maps.shape[-1]):
        units = []
        for picture in range(len(pictures)):
            own = [
                (-maps[picture, row, column, feature_map], picture, row, column)
                for row in range(maps.shape[1])
                for column in range(maps.shape[2])
            ]
            units += sorted(own)[:repeats]
        units = [unit for unit in sorted(units) if unit[0] < 0][:top_k]
        found.append(units + [(0.0, -1, 0, 0)] * (top_k - len(units)))
    return np.array(found)


def assert_same(found, expected):
    for name in ("pictures", "rows", "columns"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)
    # A convolution's last bit depends on its batch.
    np.testing.assert_allclose(found.activations, expected.activations, rtol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 7, 32])
@pytest.mark.parametrize(("top_k", "repeats"), [(9, 1), (9, 3), (60, 2)])
def test_a_scan_finds_what_sorting_everything_finds(
    coarse_model, pictures, batch_size, top_k, repeats
):
    found = scan(coarse_model, pictures, batch_size=batch_size, top_k=top_k, repeats=repeats)

    assert tuple(found) == LAYERS
    for layer, exemplars in found.items():
        expected = brute_force(coarse_model, pictures, layer, top_k, repeats)
        np.testing.assert_allclose(exemplars.activations, -expected[..., 0], rtol=1e-5)
        units = np.stack([exemplars.pictures, exemplars.rows, exemplars.columns], axis=2)
        np.testing.assert_array_equal(units, expected[..., 1:])
    ties = np.diff(found["conv1"].activations, axis=1) == 0
    assert ties.mean() > 0.3


def test_the_order_of_the_pictures_changes_nothing(coarse_model, pictures, rng):
    order = rng.permutation(COUNT)

    mixed = scan(coarse_model, pictures[order], order)

    for layer, expected in scan(coarse_model, pictures).items():
        assert_same(mixed[layer], expected)


@pytest.mark.parametrize("repeats", [1, 3])
def test_two_halves_merge_to_the_whole(coarse_model, pictures, repeats):
    numbers = np.arange(COUNT)
    halves = [
        scan(coarse_model, pictures[part::2], numbers[part::2], repeats=repeats) for part in (1, 0)
    ]

    for layer, expected in scan(coarse_model, pictures, repeats=repeats).items():
        assert_same(halves[0][layer].merged(halves[1][layer]), expected)


def test_two_devices_find_what_one_does(coarse_model, pictures):
    strategy = make_strategy("mirrored")
    with strategy.scope():
        model = type(coarse_model).from_config(coarse_model.get_config())
        model.set_weights(coarse_model.get_weights())
    scanning = Scan(Deconvnet(model), strategy=strategy)
    numbered = tf.data.Dataset.from_tensor_slices((pictures, np.arange(COUNT)))
    parts = numbered.batch(4, drop_remainder=True)
    for batch in strategy.distribute_datasets_from_function(lambda context: parts):
        scanning.update(*batch)

    for layer, expected in scan(coarse_model, pictures).items():
        assert_same(scanning.exemplars[layer], expected)


def test_padding_is_passed_over(coarse_model, pictures):
    numbers = np.where(np.arange(COUNT) < 30, np.arange(COUNT), -1)

    padded = scan(coarse_model, pictures, numbers)

    for layer, expected in scan(coarse_model, pictures[:30]).items():
        assert_same(padded[layer], expected)


def test_a_map_that_never_fires_has_no_exemplars(coarse_model, pictures):
    bias = coarse_model.get_layer("conv2").bias
    bias.assign(np.where(np.arange(6) == 2, -1e6, np.asarray(bias)))

    found = scan(coarse_model, pictures, layers=["conv2"])["conv2"]

    assert (found.pictures[2] == -1).all()
    assert (found.activations[2] == 0).all()
    assert (np.delete(found.activations, 2, axis=0) > 0).any(axis=1).all()


def test_exemplars_may_come_one_by_one(rng):
    activations = rng.integers(1, 5, 30).astype(np.float32)
    found = Exemplars.none("conv1", 1, 4)
    for picture in rng.permutation(30):
        found = found.with_units([0], [picture], [1], [2], activations[[picture]])

    expected = sorted(range(30), key=lambda picture: (-activations[picture], picture))[:4]
    assert found.pictures.tolist() == [expected]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": ["conv2", "conv9"]}, "conv1, conv2, conv3. Received: layer='conv9'"),
        ({"top_k": 0}, "top_k=0"),
        ({"repeats": 0}, "repeats=0"),
    ],
)
def test_what_cannot_be_scanned_is_named(tiny_model, options, message):
    with pytest.raises(ValueError, match=message):
        Scan(Deconvnet(tiny_model), **options)
