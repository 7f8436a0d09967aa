import numpy as np
import pytest
import tensorflow as tf

from zfkeras import receptive_field
from zfkeras.architecture import ALEXNET, ZFNET, Filtering, Pooling


def test_zfnet_sees_as_much_as_the_paper_says():
    fields = receptive_field.receptive_fields(ZFNET).values()

    assert [field.size for field in fields] == [7, 27, 75, 107, 139]
    assert [field.jump for field in fields] == [2, 8, 16, 16, 16]


def test_alexnet_sees_163_pixels_in_layer_5():
    field = receptive_field.receptive_fields(ALEXNET)["conv5"]

    assert (field.size, field.jump) == (163, 16)


def support(architecture, layer, row, column):
    """Pixels that reach a unit through filters of ones, pooling taken as a sum."""
    picture = tf.zeros((1, *architecture.input_size, 1))
    with tf.GradientTape() as tape:
        tape.watch(picture)
        maps = picture
        for block in architecture.blocks:
            for stage in block.stages:
                if isinstance(stage, Filtering):
                    pad = (stage.padding, stage.padding)
                    maps = tf.pad(maps, ((0, 0), pad, pad, (0, 0)))
                    ones = tf.ones((stage.kernel_size, stage.kernel_size, 1, 1))
                    maps = tf.nn.conv2d(maps, ones, stage.strides, "VALID")
                elif isinstance(stage, Pooling) and block.name != layer:
                    # Zeros enough for the last window, as ceil rounding has it.
                    missing = [-(side - stage.size) % stage.strides for side in maps.shape[1:3]]
                    maps = tf.pad(maps, ((0, 0), (0, missing[0]), (0, missing[1]), (0, 0)))
                    ones = tf.ones((stage.size, stage.size, 1, 1))
                    maps = tf.nn.conv2d(maps, ones, stage.strides, "VALID")
            if block.name == layer:
                break
        unit = maps[0, row, column, 0]
    reached = tape.gradient(unit, picture).numpy()[0, ..., 0] != 0
    rows, columns = np.flatnonzero(reached.any(1)), np.flatnonzero(reached.any(0))
    return rows[0], columns[0], rows[-1] + 1, columns[-1] + 1


@pytest.mark.parametrize("layer", ["conv1", "conv2", "conv3"])
def test_boxes_are_exactly_the_pixels_that_reach_a_unit(tiny, layer):
    rows, columns = receptive_field.boxes(tiny, layer)

    for row in range(len(rows)):
        for column in range(len(columns)):
            box = (rows[row, 0], columns[column, 0], rows[row, 1], columns[column, 1])
            assert box == support(tiny, layer, row, column)


@pytest.mark.parametrize("layer", ["conv1", "conv3", "conv5"])
def test_boxes_of_zfnet_are_exact_at_its_corners(layer):
    rows, columns = receptive_field.boxes(ZFNET, layer)

    for row, column in [(0, 0), (len(rows) - 1, len(columns) - 1), (1, len(columns) - 2)]:
        box = (rows[row, 0], columns[column, 0], rows[row, 1], columns[column, 1])
        assert box == support(ZFNET, layer, row, column)


def test_windows_have_one_size_and_hold_the_boxes(tiny):
    for layer in ("conv1", "conv2", "conv3"):
        size = receptive_field.receptive_fields(tiny)[layer].size
        for windows, boxes in zip(
            receptive_field.windows(tiny, layer), receptive_field.boxes(tiny, layer), strict=True
        ):
            assert set(windows[:, 1] - windows[:, 0]) == {size}
            assert (windows[:, 0] <= boxes[:, 0]).all()
            assert (windows[:, 1] >= boxes[:, 1]).all()
