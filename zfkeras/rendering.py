"""Arrays -> pictures for people. NumPy and Pillow only; nothing here knows of networks.

Projections are drawn around mid-grey, which stands for zero: grey is where a projection is silent.
Each one has its contrast normalized on its own: its largest magnitudes, from the 99.5th percentile
up, become full black or white. The numbers are not changed by being drawn.
"""

import numpy as np
from PIL import Image

from zfkeras.writing import replacing

GREY = 128
FULL_CONTRAST_PERCENTILE = 99.5

# Figure 2 shows patches of 7 pixels as large as patches of 139; small ones are enlarged to this.
TILE = 112
GAP = 4
BACKGROUND = 255


def draw_signed(values):
    """Draws an array around grey, contrast normalized as this module says.

    Args:
        values: Float array of any shape.

    Returns:
        uint8 array of the same shape; all grey if the values are all zero.
    """
    magnitudes = np.abs(values)
    # Silent pixels say nothing about contrast, and a projection is silent almost everywhere.
    heard = magnitudes[magnitudes > 0]
    if not heard.size:
        return np.full(values.shape, GREY, np.uint8)
    scale = np.percentile(heard, FULL_CONTRAST_PERCENTILE)
    drawn = GREY + values / scale * (255 - GREY)
    return np.clip(drawn, 0, 255).round().astype(np.uint8)


def cut(image, window, fill=GREY):
    """The part of an image inside a window, filled where the window reaches past the border.

    Args:
        image: Array `(height, width, channels)`.
        window: `(top, left, bottom, right)` in pixels, possibly outside the image.
        fill: Value of what lies outside.

    Returns:
        Array `(bottom - top, right - left, channels)`.
    """
    top, left, bottom, right = (int(side) for side in window)
    height, width = image.shape[:2]
    part = np.full((bottom - top, right - left, image.shape[2]), fill, image.dtype)
    inside = image[max(top, 0) : min(bottom, height), max(left, 0) : min(right, width)]
    row, column = max(-top, 0), max(-left, 0)
    part[row : row + inside.shape[0], column : column + inside.shape[1]] = inside
    return part


def enlarge(image, size=TILE):
    """An image resized so that its longer side has `size` pixels.

    Small ones are enlarged in hard squares: every square is a pixel that the network saw.
    """
    height, width = image.shape[:2]
    scale = size / max(height, width)
    new = (max(round(width * scale), 1), max(round(height * scale), 1))
    hard = scale >= 4
    method = Image.Resampling.NEAREST if hard else Image.Resampling.LANCZOS
    return np.asarray(Image.fromarray(image).resize(new, method))


def contact_sheet(tiles, columns=None, gap=GAP, background=BACKGROUND):
    """Tiles of one size in rows, in reading order.

    Args:
        tiles: uint8 arrays `(height, width, 3)`, at least one.
        columns: How many to a row; about as many as there are rows if None.
        gap: Pixels between tiles.
        background: Grey value between and after the tiles.

    Returns:
        uint8 `(sheet_height, sheet_width, 3)`.
    """
    columns = columns or int(np.ceil(np.sqrt(len(tiles))))
    rows = -(-len(tiles) // columns)
    height, width = tiles[0].shape[:2]
    shape = (rows * (height + gap) - gap, columns * (width + gap) - gap, 3)
    sheet = np.full(shape, background, np.uint8)
    for index, tile in enumerate(tiles):
        top, left = index // columns * (height + gap), index % columns * (width + gap)
        sheet[top : top + height, left : left + width] = tile
    return sheet


def projection_tiles(projections, windows, size=TILE):
    """Each projection inside its window, contrast normalized, all enlarged to one size.

    Args:
        projections: float `(count, height, width, 3)`.
        windows: int `(count, 4)`.
        size: Side of a tile in pixels.

    Returns:
        List of uint8 arrays `(size, size, 3)`.
    """
    return [
        enlarge(draw_signed(cut(projection, window, fill=0)), size)
        for projection, window in zip(projections, windows, strict=True)
    ]


def patch_tiles(seen, windows, size=TILE):
    """What of a picture lies inside each window, all enlarged to one size.

    Args:
        seen: uint8 `(height, width, 3)`, or one such picture for each window.
        windows: int `(count, 4)`.
        size: Side of a tile in pixels.

    Returns:
        List of uint8 arrays `(size, size, 3)`.
    """
    pictures = [seen] * len(windows) if seen.ndim == 3 else seen
    return [
        enlarge(cut(picture, window), size)
        for picture, window in zip(pictures, windows, strict=True)
    ]


def projection_sheet(projections, windows, seen, columns=None, size=TILE):
    """Figure 2: projections on the left, the patches that caused them on the right.

    Args:
        projections, windows, seen: As in `projection_tiles` and `patch_tiles`.
        columns: How many of each to a row.
        size: Side of a tile in pixels.

    Returns:
        uint8 `(sheet_height, sheet_width, 3)`.
    """
    left = contact_sheet(projection_tiles(projections, windows, size), columns)
    right = contact_sheet(patch_tiles(seen, windows, size), columns)
    middle = np.full((left.shape[0], 4 * GAP, 3), BACKGROUND, np.uint8)
    return np.concatenate([left, middle, right], axis=1)


def filter_sheet(filters, columns=None, size=56):
    """Figure 6: first-layer filters, each with its own contrast.

    Args:
        filters: float `(count, height, width, 3)`.
        columns: How many to a row.
        size: Side of a drawn filter in pixels.

    Returns:
        uint8 `(sheet_height, sheet_width, 3)`.
    """
    return contact_sheet([enlarge(draw_signed(one), size) for one in filters], columns)


def save(image, path):
    """Writes a uint8 `(height, width, 3)` image; the suffix of `path` decides the format.

    Raises:
        ValueError: If the suffix is not one of an image format.
    """
    require_image_path(path)
    with replacing(path) as beside:
        # PNG's default level takes three to five times as long, for files a seventh smaller.
        Image.fromarray(image).save(beside, compress_level=1)


def outline(image, box, colour=(230, 60, 40), thickness=1):
    """An image with a box drawn around part of it.

    Args:
        image: uint8 `(height, width, 3)`.
        box: `(top, left, bottom, right)` inside the image.
        colour: Of the line.
        thickness: Of the line, in pixels; drawn inside the box.

    Returns:
        uint8 `(height, width, 3)`, a copy.
    """
    top, left, bottom, right = (int(side) for side in box)
    drawn = image.copy()
    drawn[top:bottom, left:right] = colour
    inner = slice(top + thickness, bottom - thickness), slice(left + thickness, right - thickness)
    drawn[inner] = image[inner]
    return drawn


def require_image_path(path):
    """Raises ValueError unless the suffix of `path` is that of an image format we can write."""
    Image.init()
    if Image.EXTENSION.get(path.suffix.lower()) not in Image.SAVE:
        raise ValueError(f"Expected an image file such as sheet.png. Received: {path}.")
