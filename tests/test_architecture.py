import pytest

from zfkeras.architecture import (
    ALEXNET,
    ALEXNET_DENSE,
    ARCHITECTURES,
    ZFNET,
    ZFNET_SMALL,
    Architecture,
)
from zfkeras.models import ZFNet
from zfkeras.receptive_field import feature_map_sizes


def test_zfnet_has_the_map_sizes_of_figure_3():
    filtered = [size for size, _ in feature_map_sizes(ZFNET).values()]
    handed_on = [size for size, _ in ZFNET.map_sizes().values()]

    assert filtered == [110, 26, 13, 13, 13]
    assert handed_on == [55, 13, 13, 13, 6]


def test_alexnet_has_the_map_sizes_of_krizhevsky():
    assert [size for size, _ in feature_map_sizes(ALEXNET).values()] == [55, 27, 13, 13, 13]
    assert [size for size, _ in ALEXNET.map_sizes().values()] == [27, 13, 13, 13, 6]


@pytest.mark.parametrize(
    ("architecture", "parameters"),
    [
        (ZFNET, 62_357_608),
        (ZFNET.with_maps(conv3=512, conv4=1024, conv5=512), 107_627_624),
        (ALEXNET_DENSE, 62_378_344),
        (ALEXNET, 60_965_224),
    ],
    ids=["zfnet", "zfnet (b)", "alexnet-dense", "alexnet"],
)
def test_parameter_counts(architecture, parameters):
    # Symbolic shapes: a hundred million random numbers would prove no more.
    count, channels = 0, 3
    for block in architecture.blocks:
        filtering = block.stages[0]
        weights = filtering.kernel_size**2 * channels // filtering.groups * filtering.maps
        count += weights + filtering.maps
        channels = filtering.maps
    height, width = list(architecture.map_sizes().values())[-1]
    units = height * width * channels
    for layer in (*(dense.units for dense in architecture.dense), 1000):
        count += units * layer + layer
        units = layer

    assert count == parameters


def test_the_built_zfnet_has_the_parameters_of_figure_3():
    assert ZFNet(ZFNET, 1000).count_params() == 62_357_608


TABLE_3 = {
    "removed layers 3,4": lambda a: a.without("conv3", "conv4"),
    "removed layer 7": lambda a: a.without("fc7"),
    "removed layers 6,7": lambda a: a.without("fc6", "fc7"),
    "removed layers 3,4,6,7": lambda a: a.without("conv3", "conv4", "fc6", "fc7"),
    "layers 6,7: 2048 units": lambda a: a.with_units(fc6=2048, fc7=2048),
    "layers 6,7: 8192 units": lambda a: a.with_units(fc6=8192, fc7=8192),
    "layers 3,4,5: 512,1024,512 maps": lambda a: a.with_maps(conv3=512, conv4=1024, conv5=512),
    "both": lambda a: a.with_units(fc6=8192, fc7=8192).with_maps(conv3=512, conv4=1024, conv5=512),
}


@pytest.mark.parametrize("architecture", [ALEXNET, ZFNET], ids=lambda a: a.name)
@pytest.mark.parametrize("vary", TABLE_3.values(), ids=TABLE_3)
def test_every_variant_of_table_3_is_one_line(architecture, vary):
    variant = vary(architecture)

    assert variant != architecture
    assert list(variant.map_sizes().values())[-1] == (6, 6)


@pytest.mark.parametrize("vary", TABLE_3.values(), ids=TABLE_3)
def test_every_variant_of_table_3_builds(vary):
    variant = vary(ZFNET_SMALL.with_units(fc6=32, fc7=32))
    shrunk = variant.with_units(**{layer.name: 16 for layer in variant.dense})

    model = ZFNet(shrunk, 10)

    assert model.output_shape == (None, 10)


@pytest.mark.parametrize("architecture", ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_json_round_trip(architecture):
    assert Architecture.from_json(architecture.to_json()) == architecture


def test_other_input_sizes_are_followed():
    assert ZFNET.with_input_size(256, 320).map_sizes()["conv5"] == (7, 9)


def test_too_small_pictures_name_the_layer():
    with pytest.raises(ValueError, match="'conv2' needs maps of at least 5 x 5"):
        ZFNET.with_input_size(20, 20).map_sizes()


def test_an_unknown_layer_is_named():
    with pytest.raises(ValueError, match="conv1, .*'conv9'"):
        ZFNET.without("conv9")
    with pytest.raises(ValueError, match="conv1, .*conv5. Received: 'fc6'"):
        ZFNET.with_maps(fc6=2048)
    with pytest.raises(ValueError, match="fc6, fc7. Received: 'conv3'"):
        ZFNET.with_units(conv3=512)
