"""Networks as data: what Figure 3 of the paper draws, written as frozen dataclasses.

An `Architecture` says which layers a network has and nothing about how they are computed, so this
module needs neither TensorFlow nor Keras. Variants are one-line changes of another architecture:

    ZFNET.without("conv3", "conv4")                       # Table 3, "removed layers 3,4"
    ZFNET.with_maps(conv3=512, conv4=1024, conv5=512)     # Table 3, "adjust layers 3,4,5"
    ZFNET.with_units(fc6=2048, fc7=2048)                  # Table 3, "adjust layers 6,7"
"""

import dataclasses
import json
from dataclasses import dataclass


@dataclass(frozen=True)
class Filtering:
    """Convolution with square filters. Sizes in units of the map that is filtered.

    Attributes:
        maps: Number of feature maps produced.
        kernel_size: Side of a filter.
        strides: Step between neighbouring units.
        padding: Zeros put on every side of the map.
        groups: Number of equal groups that the incoming and outgoing maps are split into.
    """

    maps: int
    kernel_size: int
    strides: int = 1
    padding: int = 0
    groups: int = 1


@dataclass(frozen=True)
class Rectification:
    """`max(x, 0)` on every unit."""


@dataclass(frozen=True)
class Pooling:
    """Max pooling without padding, the last window cut off at the border (ceil rounding)."""

    size: int = 3
    strides: int = 2


@dataclass(frozen=True)
class Contrast:
    """Contrast normalization across feature maps.

    `x / (bias + alpha * s) ** beta`, where s is the sum of the squares of the maps at most
    `radius` away from x's map. The paper gives no constants; the defaults are those of
    Krizhevsky et al. (2012), section 3.3.
    """

    radius: int = 2
    bias: float = 2.0
    alpha: float = 1e-4
    beta: float = 0.75


Stage = Filtering | Rectification | Pooling | Contrast
STAGES = {kind.__name__: kind for kind in (Filtering, Rectification, Pooling, Contrast)}


@dataclass(frozen=True)
class Block:
    """One convolutional layer in the paper's sense: filtering and what follows it, in order."""

    name: str
    stages: tuple[Stage, ...]

    def stage(self, kind):
        """The block's stage of this kind, or None."""
        return next((stage for stage in self.stages if isinstance(stage, kind)), None)

    @property
    def rectified_stages(self):
        """The stages that come before the maps are pooled or normalized."""
        return tuple(stage for stage in self.stages if isinstance(stage, Filtering | Rectification))

    def rectified_size(self, size):
        """`(height, width)` of the maps before they are pooled or normalized."""
        return self.map_sizes(size)[len(self.rectified_stages)]

    def map_sizes(self, size):
        """Height and width before the first stage and after each one.

        Args:
            size: `(height, width)` of the map or picture that enters the block.

        Raises:
            ValueError: If the block has a window larger than the map it slides over.
        """
        sizes = [tuple(size)]
        for stage in self.stages:
            sizes.append(tuple(_extent(stage, side, self.name) for side in sizes[-1]))
        return sizes


@dataclass(frozen=True)
class Dense:
    """A fully connected, rectified layer; `dropout` is the fraction of units dropped after it."""

    name: str
    units: int
    dropout: float = 0.5


@dataclass(frozen=True)
class Architecture:
    """A network up to its classifier.

    Attributes:
        name: What `--architecture` calls it.
        input_size: `(height, width)` of the pictures, in pixels.
        blocks: Convolutional layers, lowest first.
        dense: Fully connected layers between the last block and the classifier.
    """

    name: str
    input_size: tuple[int, int]
    blocks: tuple[Block, ...]
    dense: tuple[Dense, ...]

    def without(self, *names):
        """This architecture with the named layers removed.

        A removed block's pooling goes with it; Table 3 only removes blocks that do not pool.
        """
        _require(names, (*self.blocks, *self.dense))
        return dataclasses.replace(
            self,
            blocks=tuple(block for block in self.blocks if block.name not in names),
            dense=tuple(layer for layer in self.dense if layer.name not in names),
        )

    def with_maps(self, **maps):
        """This architecture with other numbers of feature maps, by block name."""
        _require(maps, self.blocks)

        def widened(block):
            return dataclasses.replace(
                block,
                stages=tuple(
                    dataclasses.replace(stage, maps=maps.get(block.name, stage.maps))
                    if isinstance(stage, Filtering)
                    else stage
                    for stage in block.stages
                ),
            )

        return dataclasses.replace(self, blocks=tuple(widened(block) for block in self.blocks))

    def with_units(self, **units):
        """This architecture with other numbers of units in its fully connected layers."""
        _require(units, self.dense)
        return dataclasses.replace(
            self,
            dense=tuple(
                dataclasses.replace(layer, units=units.get(layer.name, layer.units))
                for layer in self.dense
            ),
        )

    def with_input_size(self, height, width):
        """This architecture for pictures of another size."""
        return dataclasses.replace(self, input_size=(height, width))

    def map_sizes(self):
        """`{block name: (height, width)}` of what each block hands to the next.

        Raises:
            ValueError: If the pictures are too small for a layer, which is named.
        """
        sizes, size = {}, self.input_size
        for block in self.blocks:
            size = block.map_sizes(size)[-1]
            sizes[block.name] = size
        return sizes

    def feature_map_counts(self):
        """`{block name: number of feature maps}`, lowest first."""
        counts, count = {}, 3
        for block in self.blocks:
            filtering = block.stage(Filtering)
            count = filtering.maps if filtering else count
            counts[block.name] = count
        return counts

    def to_json(self):
        """This architecture as JSON text; `from_json` is the inverse."""
        return json.dumps(_as_data(self))

    @classmethod
    def from_json(cls, text):
        """The architecture that `to_json` wrote."""
        data = json.loads(text)
        blocks = tuple(
            Block(
                block["name"],
                tuple(stage_from_data(stage) for stage in block["stages"]),
            )
            for block in data["blocks"]
        )
        dense = tuple(Dense(**layer) for layer in data["dense"])
        return cls(data["name"], tuple(data["input_size"]), blocks, dense)


def _require(names, layers):
    known = [layer.name for layer in layers]
    for name in names:
        if name not in known:
            raise ValueError(f"Expected a layer of {', '.join(known)}. Received: {name!r}.")


def _as_data(architecture):
    data = dataclasses.asdict(architecture)
    for block, block_data in zip(architecture.blocks, data["blocks"], strict=True):
        block_data["stages"] = [stage_data(stage) for stage in block.stages]
    return data


def stage_data(stage):
    """A stage as a dictionary of JSON types, with its kind under `"stage"`."""
    return {"stage": type(stage).__name__, **dataclasses.asdict(stage)}


def stage_from_data(data):
    """The stage that `stage_data` described."""
    fields = {key: value for key, value in data.items() if key != "stage"}
    return STAGES[data["stage"]](**fields)


def _extent(stage, side, name):
    match stage:
        case Filtering(kernel_size=window, strides=strides, padding=padding):
            reach = side + 2 * padding - window
            extent = reach // strides + 1
        case Pooling(size=window, strides=strides):
            reach = side - window
            extent = -(-reach // strides) + 1
        case _:
            return side
    if reach < 0:
        raise ValueError(
            f"Layer {name!r} needs maps of at least {window} x {window} pixels. Received: {side}."
        )
    return extent


POOLING = Pooling(size=3, strides=2)
CONTRAST = Contrast()


def _block(name, maps, kernel_size, *after, strides=1, padding=0, groups=1):
    filtering = Filtering(maps, kernel_size, strides, padding, groups)
    return Block(name, (filtering, Rectification(), *after))


def _normalized_block(name, maps, kernel_size, *after, strides=1, padding=0):
    contrast = Contrast(radius=maps, bias=1.0, alpha=1 / maps, beta=0.5)
    return _block(name, maps, kernel_size, *after, contrast, strides=strides, padding=padding)


# Figure 3. The padding is not in the paper: it is what makes 224 -> 110 -> 55 -> 26 -> 13 come out.
ZFNET = Architecture(
    "zfnet",
    (224, 224),
    (
        _block("conv1", 96, 7, POOLING, CONTRAST, strides=2, padding=1),
        _block("conv2", 256, 5, POOLING, CONTRAST, strides=2),
        _block("conv3", 384, 3, padding=1),
        _block("conv4", 384, 3, padding=1),
        _block("conv5", 256, 3, POOLING, padding=1),
    ),
    (Dense("fc6", 4096), Dense("fc7", 4096)),
)

# Departure from Krizhevsky: every bias starts at 0, as in Zeiler & Fergus, where he starts those of
# layers 2, 4, 5 and the hidden dense layers at 1.
# Krizhevsky et al. (2012), section 3.5; 227 pixels make the 55 x 55 maps of that paper come out.
ALEXNET = Architecture(
    "alexnet",
    (227, 227),
    (
        _block("conv1", 96, 11, CONTRAST, POOLING, strides=4),
        _block("conv2", 256, 5, CONTRAST, POOLING, padding=2, groups=2),
        _block("conv3", 384, 3, padding=1),
        _block("conv4", 384, 3, padding=1, groups=2),
        _block("conv5", 256, 3, POOLING, padding=1, groups=2),
    ),
    (Dense("fc6", 4096), Dense("fc7", 4096)),
)

ALEXNET_DENSE = dataclasses.replace(
    ALEXNET,
    name="alexnet-dense",
    blocks=tuple(
        dataclasses.replace(
            block, stages=(dataclasses.replace(block.stages[0], groups=1), *block.stages[1:])
        )
        for block in ALEXNET.blocks
    ),
)

# Departure from the paper: made to learn from ten thousand pictures on a CPU. Figure 3 for pictures
# of 128 pixels, with fewer maps and units; layer 2 steps by 1, so that layers 3 to 5 still see
# 15 x 15 positions; contrast is normalized over all maps and not over five, without which the
# first epochs learn next to nothing.
ZFNET_SMALL = Architecture(
    "zfnet-small",
    (128, 128),
    (
        _normalized_block("conv1", 48, 7, POOLING, strides=2, padding=1),
        _normalized_block("conv2", 96, 5, POOLING, padding=2),
        _block("conv3", 192, 3, padding=1),
        _block("conv4", 192, 3, padding=1),
        _block("conv5", 128, 3, POOLING, padding=1),
    ),
    (Dense("fc6", 512), Dense("fc7", 512)),
)

ARCHITECTURES = {
    architecture.name: architecture for architecture in (ZFNET, ALEXNET, ALEXNET_DENSE, ZFNET_SMALL)
}
