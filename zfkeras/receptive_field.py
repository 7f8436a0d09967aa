"""Which pixels of a picture a unit sees: plain integers, exact at the borders.

Boxes and windows are `(top, left, bottom, right)` in pixels of the network's input, bottom and
right exclusive. A unit's *window* is the full square that its filters span, which may reach past
the picture; its *box* is the part of the picture that can change the unit.
"""

import dataclasses
from dataclasses import dataclass

import numpy as np

from zfkeras.architecture import Block, Filtering, Pooling


@dataclass(frozen=True)
class ReceptiveField:
    """Geometry of the units of one layer, the same along rows and columns.

    Attributes:
        size: Side of a unit's window, in pixels.
        jump: Pixels between the windows of neighbouring units.
        offset: First pixel of the first unit's window; negative where padding comes before it.
    """

    size: int
    jump: int
    offset: int


def receptive_fields(architecture):
    """`{block name: ReceptiveField}` of each block's rectified maps, before they are pooled."""
    return {name: _compose(stages) for name, stages in _stages_below(architecture)}


@dataclass(frozen=True)
class Level(ReceptiveField):
    """What a unit sees of one map on the way down, in units of that map.

    Attributes:
        extent: `(height, width)` of the map.
    """

    extent: tuple[int, int]


def levels(architecture, layer):
    """What a layer's units see, on every map below them.

    Returns:
        `Level`s: of the picture, after the first stage, and so on up to the layer's rectified maps.
    """
    stages = dict(_stages_below(architecture))[layer]
    extents = Block(layer, stages).map_sizes(architecture.input_size)
    return [
        Level(*dataclasses.astuple(_compose(stages[below:])), extent)
        for below, extent in enumerate(extents)
    ]


def windows(architecture, layer):
    """Full extent of every unit of a layer, which may reach past the picture.

    Returns:
        `(row_spans, column_spans)`: int arrays `(height, 2)` and `(width, 2)` of the layer's
        rectified maps, each line the first pixel and the one after the last.
    """
    field = receptive_fields(architecture)[layer]
    height, width = feature_map_sizes(architecture)[layer]

    def spans(count):
        first = field.offset + field.jump * np.arange(count)
        return np.stack([first, first + field.size], axis=1)

    return spans(height), spans(width)


def boxes(architecture, layer):
    """The part of the picture that every unit of a layer really sees.

    Followed down layer by layer: a map that ends ends for every unit above it, which a window
    merely cut at the picture's border would miss (a border row that a stride skips, say).

    Returns:
        As `windows`.
    """
    stages = dict(_stages_below(architecture))[layer]
    return tuple(_visible_spans(layer, stages, architecture.input_size))


def feature_map_sizes(architecture):
    """`{block name: (height, width)}` of each block's rectified maps, before they are pooled."""
    sizes, size = {}, architecture.input_size
    for block in architecture.blocks:
        sizes[block.name] = block.rectified_size(size)
        size = block.map_sizes(size)[-1]
    return sizes


def _stages_below(architecture):
    below = ()
    for block in architecture.blocks:
        yield block.name, below + block.rectified_stages
        below += block.stages


def _geometry(stage):
    """`(window, strides, padding)` of a stage; one unit sees one unit where nothing slides."""
    match stage:
        case Filtering(kernel_size=window, strides=strides, padding=padding):
            return window, strides, padding
        case Pooling(size=window, strides=strides):
            return window, strides, 0
        case _:
            return 1, 1, 0


def _compose(stages):
    size, jump, offset = 1, 1, 0
    for window, strides, padding in map(_geometry, stages):
        size += (window - 1) * jump
        offset -= padding * jump
        jump *= strides
    return ReceptiveField(size, jump, offset)


def _visible_spans(layer, stages, size):
    """Spans of the layer's rows, then of its columns."""
    sizes = Block(layer, stages).map_sizes(size)
    for axis in (0, 1):
        first = last = np.arange(sizes[-1][axis])
        for stage, below in zip(reversed(stages), reversed(sizes[:-1]), strict=True):
            window, strides, padding = _geometry(stage)
            first = np.maximum(first * strides - padding, 0)
            last = np.minimum(last * strides - padding + window - 1, below[axis] - 1)
        yield np.stack([first, last + 1], axis=1)
