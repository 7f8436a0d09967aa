"""Pictures that zfkeras draws itself: classes made of parts at known places, on textured grounds.

They stand in where no data set is at hand. Each class is told by its parts, as a face is by its
eyes, and the parts' places are returned, so that analyses of parts can be checked against them.
Every picture is a pure function of its split, its index and its size.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

CLASS_NAMES = ("face", "car", "house", "flower", "fish", "ladder")
COUNTS = {"train": 1200, "validation": 300}
_SPLIT_SEEDS = {"train": 0, "validation": 1}


@dataclass(frozen=True)
class Picture:
    """A drawn picture.

    Attributes:
        image: uint8 `(size, size, 3)`.
        label: int, index into `CLASS_NAMES`.
        parts: `{name: (row, column)}`, the centre of each part in pixels.
    """

    image: np.ndarray
    label: int
    parts: dict[str, tuple[float, float]]


def label(index):
    """The label of picture number `index` of a split."""
    return index % len(CLASS_NAMES)


def draw(index, split="train", size=146):
    """Draws picture number `index` of a split, `size` x `size` pixels."""
    rng = np.random.default_rng((_SPLIT_SEEDS[split], index))
    # Drawn at twice the size and reduced, for smooth edges.
    canvas = Image.fromarray(_texture(rng, 2 * size))
    radius = size * rng.uniform(0.5, 0.75)
    centre = size + rng.uniform(-0.2, 0.2, 2) * size
    pen = _Pen(ImageDraw.Draw(canvas), centre, radius, rng)
    _DRAWINGS[CLASS_NAMES[label(index)]](pen)
    image = np.asarray(canvas.resize((size, size), Image.Resampling.LANCZOS))
    parts = {name: tuple(float(x) / 2 for x in place) for name, place in pen.parts.items()}
    return Picture(image, label(index), parts)


class _Pen:
    """Draws at (row, column) from a figure's centre, in units of its radius."""

    def __init__(self, canvas, centre, radius, rng):
        self.canvas = canvas
        self.centre = centre
        self.radius = radius
        self.rng = rng
        self.parts = {}

    def colour(self):
        return tuple(int(value) for value in self.rng.integers(0, 256, 3))

    def place(self, row, column):
        row, column = self.centre + np.array([row, column]) * self.radius
        return column, row

    def ellipse(self, row, column, height, width, colour, part=None):
        left, top = self.place(row - height, column - width)
        right, bottom = self.place(row + height, column + width)
        self.canvas.ellipse((left, top, right, bottom), fill=colour, outline="black", width=3)
        self._name(part, row, column)

    def rectangle(self, row, column, height, width, colour, part=None):
        corners = [
            self.place(row - height, column - width),
            self.place(row + height, column + width),
        ]
        self.canvas.rectangle(corners, fill=colour, outline="black", width=3)
        self._name(part, row, column)

    def polygon(self, points, colour, part=None):
        self.canvas.polygon([self.place(*point) for point in points], fill=colour, outline="black")
        self._name(part, *np.mean(points, axis=0))

    def _name(self, part, row, column):
        if part:
            self.parts[part] = tuple(self.centre + np.array([row, column]) * self.radius)


def _face(pen):
    pen.ellipse(0, 0, 1, 0.8, (230, 190, 150))
    for side, column in (("left eye", -0.35), ("right eye", 0.35)):
        pen.ellipse(-0.25, column, 0.14, 0.2, "white")
        pen.ellipse(-0.25, column, 0.09, 0.09, pen.colour(), side)
    pen.polygon([(-0.1, 0), (0.2, -0.12), (0.2, 0.12)], (200, 140, 110), "nose")
    pen.ellipse(0.5, 0, 0.1, 0.35, (190, 40, 50), "mouth")


def _car(pen):
    colour = pen.colour()
    pen.polygon([(-0.1, -0.6), (-0.55, -0.35), (-0.55, 0.35), (-0.1, 0.65)], colour)
    pen.rectangle(0.15, 0, 0.28, 1, colour)
    pen.rectangle(-0.28, 0, 0.14, 0.3, (190, 220, 250), "window")
    for part, column in (("left wheel", -0.6), ("right wheel", 0.6)):
        pen.ellipse(0.45, column, 0.25, 0.25, (30, 30, 30))
        pen.ellipse(0.45, column, 0.1, 0.1, (200, 200, 200), part)


def _house(pen):
    pen.rectangle(0.35, 0, 0.55, 0.75, pen.colour())
    pen.polygon([(-0.2, -0.95), (-0.95, 0), (-0.2, 0.95)], (170, 60, 40), "roof")
    pen.rectangle(0.55, 0, 0.35, 0.17, pen.colour(), "door")
    for part, column in (("left window", -0.45), ("right window", 0.45)):
        pen.rectangle(0.2, column, 0.15, 0.15, (250, 240, 170), part)


def _flower(pen):
    pen.rectangle(0.6, 0, 0.4, 0.05, (40, 140, 50), "stem")
    colour = pen.colour()
    for angle in np.linspace(0, 2 * np.pi, 7)[:-1]:
        pen.ellipse(-0.3 + 0.38 * np.sin(angle), 0.38 * np.cos(angle), 0.24, 0.24, colour)
    pen.ellipse(-0.3, 0, 0.2, 0.2, (250, 210, 40), "heart")


def _fish(pen):
    colour = pen.colour()
    pen.polygon([(0, 0.5), (-0.5, 1), (0.5, 1)], colour, "tail")
    pen.ellipse(0, -0.1, 0.45, 0.8, colour)
    pen.polygon([(-0.2, -0.1), (-0.7, 0.15), (-0.2, 0.3)], pen.colour(), "fin")
    pen.ellipse(-0.1, -0.6, 0.1, 0.1, "white", "eye")


def _ladder(pen):
    colour = pen.colour()
    for part, column in (("left rail", -0.4), ("right rail", 0.4)):
        pen.rectangle(0, column, 1, 0.07, colour, part)
    for row in np.linspace(-0.8, 0.8, 5):
        pen.rectangle(row, 0, 0.06, 0.4, colour)


_DRAWINGS = {
    "face": _face,
    "car": _car,
    "house": _house,
    "flower": _flower,
    "fish": _fish,
    "ladder": _ladder,
}


def _texture(rng, size):
    """Noise at a random scale, or a grating at a random angle, between two random colours."""
    dark, light = np.sort(rng.integers(0, 256, (2, 3)), axis=0)
    if rng.random() < 0.5:
        coarse = int(rng.integers(6, 40))
        noise = Image.fromarray(rng.integers(0, 256, (coarse, coarse), dtype=np.uint8))
        noise = noise.resize((size, size), Image.Resampling.BICUBIC)
        mixture = np.asarray(noise.filter(ImageFilter.GaussianBlur(1))) / 255
    else:
        rows, columns = np.mgrid[:size, :size]
        angle, period = rng.uniform(0, np.pi), rng.uniform(10, 60)
        phase = (rows * np.sin(angle) + columns * np.cos(angle)) * 2 * np.pi / period
        mixture = (np.sin(phase) + 1) / 2
    return (dark + mixture[..., None] * (light - dark)).astype(np.uint8)
