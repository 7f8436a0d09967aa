"""Correspondence: whether hiding the same part of different pictures changes features alike.

The change that a mask makes to the features of picture i is `eps_i = x_i - x~_i`. If features stand
for parts, masks over the same part of different pictures change them in the same directions: the
signs of the changes differ at fewer places than those of masks at random places (section 4.4 of the
paper's third version, Table 1).

The paper prints the mean fraction of places where two signs differ; its formula, the sum over all
ordered pairs of pictures, is here too. It does not say what becomes of places that do not change:
here their sign is zero, which differs from both others. Most places do not change, and more of them
do where the network sees something, so that this fraction tells of how much changes as well as of
likeness. Beyond the paper: the fraction of the places that at least one of two masks changes tells
of likeness alone.
"""

import collections
import csv
import dataclasses
import os
from dataclasses import dataclass

import numpy as np
import tensorflow as tf
from scipy.spatial.distance import pdist

from zfkeras.data.images import centre_box, centre_crop, fill_of
from zfkeras.features import Features
from zfkeras.writing import replacing

COLUMNS = ("picture", "part", "row", "column", "height", "width")
RANDOM = "random"
MOST_DIGITS = 9


@dataclass(frozen=True)
class Part:
    """A named part of a picture, as a box in pixels of the picture.

    Attributes:
        picture: Name of the picture.
        part: Name of the part.
        row, column: Its first row and column.
        height, width: How many of each.
    """

    picture: str
    part: str
    row: int
    column: int
    height: int
    width: int

    @property
    def box(self):
        """`(top, left, bottom, right)`, bottom and right exclusive."""
        return self.row, self.column, self.row + self.height, self.column + self.width


@dataclass(frozen=True)
class Consistency:
    """How unlike the changes are that the same masks make of different pictures.

    Attributes:
        layer: Name of the layer.
        part: Name of the part, or `"random"`.
        size_of: For random masks, the part whose sizes they have; None for parts, and for the
            random masks of all sizes together.
        pictures: How many pictures.
        pairs: How many pairs of changes were compared.
        mean: Of the fractions of differing signs over the pairs.
        spread: Their standard deviation.
        mean_of_changed, spread_of_changed: The same of the places that either mask changes.
        differing: The paper's formula: differing signs, summed over all ordered pairs. For random
            masks, of one mask a picture on average.
    """

    layer: str
    part: str
    size_of: str | None
    pictures: int
    pairs: int
    mean: float
    spread: float
    mean_of_changed: float
    spread_of_changed: float
    differing: float


def read_parts(path):
    """The parts listed in a `.csv` file with a line of headings.

    Args:
        path: The file; its columns are picture, part, row, column, height, width.

    Returns:
        List of `Part`s.

    Raises:
        ValueError: If a column is missing or a line is not of such a part; the message names it.
        OSError: If the file cannot be read.
    """
    parts = []
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            table = csv.DictReader(file)
            missing = [name for name in COLUMNS if name not in (table.fieldnames or ())]
            if missing:
                raise ValueError(f"{path} has no column {missing[0]}. Expected {_list(COLUMNS)}.")
            for line in table:
                numbers = [line[name] for name in COLUMNS[2:]]
                if not all(number and number.strip().isdecimal() for number in numbers) or any(
                    len(number.strip()) > MOST_DIGITS for number in numbers
                ):
                    raise ValueError(
                        f"{path}, line {table.line_num}: expected whole numbers from 0 for "
                        f"{_list(COLUMNS[2:])}. Received: {_list(map(str, numbers))[:100]}."
                    )
                # One picture may be written in several ways.
                picture = line["picture"] and os.path.normpath(line["picture"])
                part = Part(picture, line["part"], *map(int, numbers))
                if not (part.picture and part.part and part.height and part.width):
                    raise ValueError(
                        f"{path}, line {table.line_num}: expected a picture, a part, and at least "
                        "one pixel."
                    )
                parts.append(part)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is not a .csv file of text: {error}.") from error
    require_pairs(parts)
    return parts


def require_pairs(parts):
    """Raises ValueError unless every part is there in two pictures, once in each."""
    if not parts:
        raise ValueError("There are no parts. Expected each in at least two pictures.")
    for part, boxes in by_part(parts).items():
        pictures = [one.picture for one in boxes]
        ((most, times),) = collections.Counter(pictures).most_common(1)
        if times == len(pictures):
            raise ValueError(f"Part {part!r} is in one picture only. Expected at least two.")
        if times > 1:
            raise ValueError(f"Part {part!r} is there twice in {most}. Expected it once.")
        if part == RANDOM:
            raise ValueError(f"No part can be called {RANDOM!r}, as random masks are.")


def by_part(parts):
    """`{name: its parts}`, in the order in which the names first appear."""
    named = {}
    for part in parts:
        named.setdefault(part.part, []).append(part)
    return named


def seen_boxes(parts, sizes, side, extent):
    """Where parts lie in what a network sees of their pictures.

    Args:
        parts: List of `Part`s.
        sizes: `{picture: (height, width, ...)}`.
        side: Of the centre square that crops are taken from.
        extent: `(height, width)` of what the network sees.

    Returns:
        `{part: {picture: (top, left, bottom, right)}}`, in whole pixels of what it sees, cut off
        where that ends.

    Raises:
        ValueError: If a part lies outside of its picture, or of what the network sees of it.
    """
    boxes = {}
    for part, places in by_part(parts).items():
        boxes[part] = {}
        for one in places:
            height, width = sizes[one.picture][:2]
            if one.box[2] > height or one.box[3] > width:
                raise ValueError(
                    f"Part {part!r} ends at row {one.box[2]}, column {one.box[3]}, outside of "
                    f"{one.picture}, which has {height} x {width} pixels."
                )
            top, left, bottom, right = centre_box(one.box, (height, width), side, extent)
            if top == bottom or left == right:
                raise ValueError(
                    f"Part {part!r} of {one.picture} lies outside of the centre that the network "
                    "sees, or is less than a pixel of it."
                )
            boxes[part][one.picture] = top, left, bottom, right
    return boxes


def sign_differences(changes):
    """Fractions of places at which the signs of changes differ, for each pair of them.

    Args:
        changes: float `(count, ...)`. The sign of zero is zero.

    Returns:
        float64 `(count * (count - 1) / 2,)`: first with second, first with third, and so on.

    Reference:
        Zeiler & Fergus (2013), section 4.4 of the third version.
    """
    return pdist(np.sign(changes).reshape(len(changes), -1), "hamming")


def changed_places(changes):
    """Fractions of places that at least one of two changes has, ordered as `sign_differences`."""
    same = (np.reshape(changes, (len(changes), -1)) == 0).astype(np.float32)
    # Counts of places, which float32 holds exactly up to 16 million.
    neither = (same @ same.T)[np.triu_indices(len(same), 1)].astype(np.float64)
    return 1 - neither / same.shape[1]


def random_boxes(sizes, extent, rng):
    """Boxes of given sizes, each at a place drawn evenly from those where it fits.

    Args:
        sizes: `(height, width)` of each.
        extent: `(height, width)` of the pictures.
        rng: A `numpy.random.Generator`.

    Returns:
        List of `(top, left, bottom, right)`.
    """
    boxes = []
    for height, width in sizes:
        top, left = rng.integers((extent[0] - height + 1, extent[1] - width + 1))
        boxes.append((int(top), int(left), int(top + height), int(left + width)))
    return boxes


class CorrespondenceProbe:
    """Masks parts of pictures and compares what changes.

    Args:
        trained: A `zfkeras.trained.Trained` network.
        layers: As in `zfkeras.features.Features`.
        value: What the masks show, as in `zfkeras.data.images.fill_of`.

    Attributes:
        layers: Their names.
        extent: `(height, width)` of a picture.
    """

    def __init__(self, trained, layers=("last_maps", "last"), value="gray"):
        self._trained, self._value = trained, value
        self._features = Features(trained, layers)
        self.layers = self._features.layers
        self.extent = self._features.input_shape[:2]
        self._mean_image = centre_crop(trained.mean_image, self.extent)
        self._look = tf.function(self._look_at, autograph=False, reduce_retracing=True)

    def look(self, parts, read):
        """What the network sees of pictures, and where their parts lie in it.

        Args:
            parts: List of `Part`s.
            read: Function of a picture's name that gives the picture, uint8 `(height, width, 3)`.

        Returns:
            `{picture: uint8 (height, width, 3)}`, and the boxes as `seen_boxes` gives them.
        """
        seen, sizes = {}, {}
        for name in dict.fromkeys(one.picture for one in parts):
            # A picture as it comes may be large: only what the network sees of it is kept.
            picture = read(name)
            seen[name], sizes[name] = self._trained.prepare(picture, self.extent)[0], picture.shape
        boxes = seen_boxes(parts, sizes, len(self._trained.mean_image), self.extent)
        return seen, boxes

    def masked(self, seen, box):
        """A picture with a box of it hidden.

        Args:
            seen: uint8 `(height, width, 3)`, the picture as the network sees it.
            box: `(top, left, bottom, right)`.

        Returns:
            float32, shaped like `seen`, in 0 to 255.
        """
        top, left, bottom, right = box
        fill = fill_of(self._value, seen, self._mean_image, max(bottom - top, right - left))
        hidden = seen.astype(np.float32)
        hidden[top:bottom, left:right] = fill[top:bottom, left:right]
        return hidden

    def changes(self, seen, boxes):
        """What masks change of one picture's features, all in one batch.

        Args:
            seen: As in `masked`.
            boxes: `(top, left, bottom, right)` each.

        Returns:
            `{layer: float32 (count, ...)}`: features of the picture minus those with the mask.
        """
        # The picture as it is goes along, so that what does not change is zero exactly.
        pictures = [seen.astype(np.float32), *(self.masked(seen, box) for box in boxes)]
        found = self._look(tf.constant(np.stack(pictures) - self._mean_image))
        return {layer: one.numpy() for layer, one in zip(self.layers, found, strict=True)}

    def __call__(
        self,
        seen,
        boxes,
        draws=10,
        seed=0,
        batch_size=32,
        on_picture=lambda done, total: None,
    ):
        """Compares the changes that masks make, part by part.

        Args:
            seen: `{picture: uint8 (height, width, 3)}`, as the network sees them.
            boxes: `{part: {picture: (top, left, bottom, right)}}` in those pictures, two pictures
                or more to a part.
            draws: How many random masks there are to every part of every picture, of its size.
            seed: Decides where they lie.
            batch_size: Masks at a time.
            on_picture: Called with how many pictures are done, and of how many.

        Returns:
            List of `Consistency`, layer by layer: of each part, of the random masks of its sizes,
            and last of all random masks.
        """
        rng = np.random.default_rng(seed)
        # Of all that is compared, a byte for every feature of every mask is kept.
        signs = {(layer, part): [] for layer in self.layers for part in boxes}
        for index, (picture, pixels) in enumerate(seen.items()):
            for part, places in boxes.items():
                if picture not in places:
                    continue
                top, left, bottom, right = places[picture]
                sizes = [(bottom - top, right - left)] * draws
                masks = [places[picture], *random_boxes(sizes, self.extent, rng)]
                of_picture = {layer: [] for layer in self.layers}
                for first in range(0, len(masks), batch_size):
                    changes = self.changes(pixels, masks[first : first + batch_size])
                    for layer, changed in changes.items():
                        of_picture[layer].append(np.sign(changed).astype(np.int8))
                for layer, batches in of_picture.items():
                    signs[layer, part].append(np.concatenate(batches))
            on_picture(index + 1, len(seen))
        found = []
        for layer in self.layers:
            at_random = []
            for part in boxes:
                changes = np.stack(signs.pop((layer, part)))  # Pictures, masks, and features.
                of_part, *of_random = (changes[:, mask] for mask in range(draws + 1))
                found.append(_consistency(layer, part, None, [of_part]))
                if draws:
                    found.append(_consistency(layer, RANDOM, part, of_random))
                    at_random += of_random
            if draws:
                found.append(_consistency(layer, RANDOM, None, at_random))
        return found

    def _look_at(self, inputs):
        return [one[:1] - one[1:] for one in self._features(inputs)]


def _consistency(layer, part, size_of, groups):
    """Compares changes, `(pictures, ...)`, within each of several groups."""
    differing = np.concatenate([sign_differences(changes) for changes in groups])
    changed = np.concatenate([changed_places(changes) for changes in groups])
    # Where no mask changes anything, as dead maps have it, there is nothing to compare.
    of_changed = differing[changed > 0] / changed[changed > 0]
    places = groups[0][0].size
    return Consistency(
        layer=layer,
        part=part,
        size_of=size_of,
        pictures=max(map(len, groups)),
        pairs=len(differing),
        mean=float(differing.mean()),
        spread=float(differing.std()),
        mean_of_changed=float(of_changed.mean()) if len(of_changed) else 0.0,
        spread_of_changed=float(of_changed.std()) if len(of_changed) else 0.0,
        # Every pair counts in both orders.
        differing=float(2 * places * differing.sum() / len(groups)),
    )


def save_table(found, path):
    """Writes a `.csv` file with a line for each `Consistency`."""
    with replacing(path) as beside, beside.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow([field.name for field in dataclasses.fields(Consistency)])
        table.writerows(dataclasses.astuple(one) for one in found)


def table(found):
    """Table 1 as lines of text: masks in rows, layers in columns.

    Each cell is mean and spread, and in brackets the mean of the places that either mask changes.
    """
    shown = [one for one in found if one.size_of is None]
    layers = list(dict.fromkeys(one.layer for one in shown))
    parts = list(dict.fromkeys(one.part for one in shown))
    cells = {
        (one.part, one.layer): f"{one.mean:.3f} ± {one.spread:.3f} ({one.mean_of_changed:.3f})"
        for one in shown
    }
    width = max(len(name) for name in (*parts, "mask"))
    rows = [["mask".ljust(width), *(f"{layer:>21}" for layer in layers)]]
    rows += [
        [part.ljust(width), *(f"{cells[part, layer]:>21}" for layer in layers)] for part in parts
    ]
    return ["  ".join(row) for row in rows]


def _list(names):
    return ", ".join(names)
