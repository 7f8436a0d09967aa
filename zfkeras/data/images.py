"""Preparing pictures for a network, as in section 3 of the paper. TensorFlow functions.

`images` are uint8 in [0, 255]; `inputs` are float32 with the mean image subtracted, in about +-128.
"""

import keras
import numpy as np
import tensorflow as tf
from PIL import Image, ImageFilter

from zfkeras.choices import BORDERS, CROPS, FILLS, TRANSFORMATIONS

# The square of the paper's Figure 7.
GREY = 124

# Departure from the paper: ten fixed crops are too few views of ten thousand pictures. "scaled"
# crops cover at least this share of the square and are at most 4/3 times as long as wide
# (Szegedy et al., 2015, section 6).
SMALLEST_SCALED_AREA = 0.35
LONGEST_SCALED_ASPECT = 4 / 3


def decode(encoded):
    """Decodes a JPEG, PNG, BMP or GIF file's bytes to uint8 `(height, width, 3)`."""
    return tf.io.decode_image(encoded, channels=3, expand_animations=False)


def centre_square(images, size):
    """The centre square of pictures, resized so that the shorter side has `size` pixels.

    Args:
        images: uint8 tensor `(..., height, width, 3)` of any size.
        size: Side of the result.

    Returns:
        uint8 `(..., size, size, 3)`.
    """
    height, width = tf.shape(images)[-3], tf.shape(images)[-2]
    side = tf.minimum(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    # Departure from the paper: it resizes, then cuts. Cutting first resizes fewer pixels; the
    # sampling grid lies up to half a pixel of the picture elsewhere.
    square = images[..., top : top + side, left : left + side, :]
    resized = tf.image.resize(square, (size, size), antialias=True)
    rounded = tf.cast(tf.clip_by_value(tf.round(resized), 0, 255), tf.uint8)
    return tf.ensure_shape(rounded, (*images.shape[:-3], size, size, 3))


def centre_crop(images, size):
    """The centre `(height, width)` of pictures or of a mean image `(..., height, width, 3)`."""
    top, left = (images.shape[-3] - size[0]) // 2, (images.shape[-2] - size[1]) // 2
    return images[..., top : top + size[0], left : left + size[1], :]


def centre_box(box, extent, side, size):
    """Where a box of a picture lies in what `centre_square`, then `centre_crop`, make of it.

    Args:
        box: `(top, left, bottom, right)` in pixels of the picture, bottom and right exclusive.
        extent: `(height, width)` of the picture.
        side: Of the centre square.
        size: `(height, width)` of the crop.

    Returns:
        The same in whole pixels of the crop, cut off at its border; empty if all of it lies beyond.
    """
    shorter = min(extent)
    corners = []
    for axis in (0, 1):
        start = (extent[axis] - shorter) // 2
        for place in (box[axis], box[axis + 2]):
            moved = (place - start) * side / shorter - (side - size[axis]) // 2
            corners.append(int(np.clip(round(moved), 0, size[axis])))
    top, bottom, left, right = corners
    return top, left, bottom, right


def fill_of(value, seen, mean_image, size):
    """What stands for hidden pixels, in 0 to 255, before any preprocessing.

    Args:
        value: `"gray"`, as in the paper; `"mean"`, the data set's mean image, or the picture's mean
            colour where there is none; `"blur"`, the picture itself, blurred over what is hidden;
            or three numbers, red, green and blue.
        seen: uint8 `(height, width, 3)`, the picture.
        mean_image: float32, shaped like it.
        size: Side of what is hidden, in pixels.

    Returns:
        float32, shaped like `seen`.

    Raises:
        ValueError: If the value is unknown.
    """
    match value:
        case "gray":
            colour = GREY
        case "mean":
            colour = mean_image if np.any(mean_image) else seen.mean(axis=(0, 1))
        case "blur":
            colour = Image.fromarray(seen).filter(ImageFilter.GaussianBlur(size / 2))
        case red, green, blue if all(0 <= one <= 255 for one in (red, green, blue)):
            colour = value
        case _:
            raise ValueError(
                f"`value` must be one of {', '.join(FILLS)} or three numbers from 0 to 255. "
                f"Received: value={value!r}."
            )
    return np.broadcast_to(np.asarray(colour, np.float32), seen.shape)


def transform(image, kind, values, border):
    """Moves, enlarges or turns a picture about its centre, once for every value.

    Args:
        image: Float tensor `(height, width, channels)`.
        kind: `"vertical"`, values in pixels downwards; `"horizontal"`, in pixels to the right;
            `"scale"`, in times as large; or `"rotation"`, in degrees counterclockwise.
        values: float `(count,)`.
        border: What comes in from beyond the border: `"edge"`, its last pixels repeated;
            `"reflect"`, the picture mirrored; or an array that broadcasts to the picture's shape.

    Returns:
        float32 `(count, height, width, channels)`, between pixels interpolated linearly.

    Raises:
        ValueError: If the kind is unknown or a scale is not positive.
    """
    height, width = image.shape[:2]
    values = np.asarray(values, np.float64)
    zero, one = np.zeros_like(values), np.ones_like(values)
    cosine, sine, scale, down, right = one, zero, one, zero, zero
    match kind:
        case "vertical":
            down = values
        case "horizontal":
            right = values
        case "scale" if (values > 0).all():
            scale = values
        case "scale":
            raise ValueError(f"Scales must be positive. Received: {values.min()}.")
        case "rotation":
            # A full turn is none, to the last bit.
            angle = np.deg2rad(values % 360)
            cosine, sine = np.cos(angle), np.sin(angle)
        case _:
            raise ValueError(
                f"`kind` must be one of {', '.join(TRANSFORMATIONS)}. Received: kind={kind!r}."
            )
    # From a place in the result to one in the picture, as (column, row) from the centre.
    matrix = [[cosine / scale, -sine / scale], [sine / scale, cosine / scale]]
    centre = (width - 1) / 2, (height - 1) / 2
    shifts = [
        at - row[0] * (centre[0] + right) - row[1] * (centre[1] + down)
        for row, at in zip(matrix, centre, strict=True)
    ]
    matrices = np.stack([*matrix[0], shifts[0], *matrix[1], shifts[1], zero, zero], axis=1)

    def resample(maps, mode):
        maps = tf.tile(tf.cast(maps, tf.float32)[None], (len(values), 1, 1, 1))
        return keras.ops.image.affine_transform(
            maps, matrices.astype(np.float32), "bilinear", mode, data_format="channels_last"
        )

    if isinstance(border, str):
        if border not in ("edge", "reflect"):
            raise ValueError(
                f"`border` must be edge, reflect or an array. Received: border={border!r}."
            )
        return resample(image, {"edge": "nearest", "reflect": "reflect"}[border])
    covered = resample(tf.ones((height, width, 1)), "constant")
    return resample(image, "constant") + (1 - covered) * tf.cast(border, tf.float32)


def border_of(value, seen, mean_image):
    """What `transform` is to take for `border`, in pixels of 0 to 255.

    Args:
        value: One of `BORDERS`, or three numbers, red, green and blue.
        seen, mean_image: As in `fill_of`.

    Raises:
        ValueError: If the value is unknown.
    """
    if value in ("edge", "reflect"):
        return value
    if isinstance(value, str) and value not in BORDERS:
        raise ValueError(
            f"`value` must be one of {', '.join(BORDERS)} or three numbers from 0 to 255. "
            f"Received: value={value!r}."
        )
    return fill_of(value, seen, mean_image, 0)


def subtract_mean(images, mean_image):
    """Pictures as network inputs: float32, the per-pixel mean of the training set subtracted."""
    return tf.cast(images, tf.float32) - mean_image


# How many random numbers each of the two takes for every picture.
CROP_DRAWS = 5
COLOUR_DRAWS = 3

PLACES = ((0, 0), (0, 1), (1, 0), (1, 1), (0.5, 0.5))


def crop_for_training(inputs, size, crops, draws):
    """One crop of every picture in a batch, flipped or not.

    Args:
        inputs: float32 `(batch, side, side, 3)`.
        size: `(height, width)` of the crops.
        crops: `"ten"`, the paper's four corners and centre with and without a flip; `"random"`,
            any place; `"scaled"`, any place, area and aspect; `"centre"`, always the same.
        draws: float32 `(batch, CROP_DRAWS)` in [0, 1), which decide everything.

    Returns:
        float32 `(batch, *size, 3)`.
    """
    if crops not in CROPS:
        raise ValueError(f"`crops` must be one of {', '.join(CROPS)}. Received: crops={crops!r}.")
    if crops == "centre":
        return centre_crop(inputs, size)
    batch, side = tf.shape(inputs)[0], inputs.shape[1]
    height, width = size
    place, share, shape, flip = draws[:, :2], draws[:, 2], draws[:, 3], draws[:, 4]
    free = tf.constant([side - height, side - width], tf.float32)
    if crops == "ten":
        chosen = tf.cast(place[:, 0] * len(PLACES), tf.int32)
        start = tf.gather(tf.constant(PLACES), chosen) * free
    elif crops == "random":
        # A draw just below 1 may be rounded up to one step too far.
        start = tf.minimum(tf.floor(place * (free + 1)), free)
    else:
        area = SMALLEST_SCALED_AREA + share * (1 - SMALLEST_SCALED_AREA)
        aspect = LONGEST_SCALED_ASPECT ** (2 * shape - 1)
        shares = tf.sqrt(tf.stack([area * aspect, area / aspect], axis=1))
        extent = tf.minimum(shares, 1.0) * side
        start = place * (side - extent)
        boxes = tf.concat([start, start + extent - 1], axis=1) / (side - 1)
        inputs = tf.image.crop_and_resize(inputs, boxes, tf.range(batch), size)
        start = tf.zeros_like(start)
    return _copy_crops(inputs, tf.cast(start, tf.int32), size, flip < 0.5)


def _copy_crops(inputs, start, size, flipped):
    rows, columns = (start[:, axis, None] + tf.range(side) for axis, side in enumerate(size))
    columns = tf.where(flipped[:, None], columns[:, ::-1], columns)
    # One gathering of pixels is several times as fast as slices, reversed or not.
    first = tf.range(tf.shape(inputs)[0])[:, None, None] * inputs.shape[1] * inputs.shape[2]
    pixels = first + rows[:, :, None] * inputs.shape[2] + columns[:, None, :]
    return tf.gather(tf.reshape(inputs, (-1, inputs.shape[3])), pixels)


def ten_views(inputs, size):
    """The ten crops that a test picture is seen through: the paper's, in a fixed order.

    Args:
        inputs: Tensor `(batch, side, side, 3)`.
        size: `(height, width)` of the crops.

    Returns:
        List of ten tensors `(batch, *size, 3)`: four corners and the centre, then their flips.
    """
    height, width = size
    views = []
    for down, across in PLACES:
        top = int(down * (inputs.shape[1] - height))
        left = int(across * (inputs.shape[2] - width))
        views.append(inputs[:, top : top + height, left : left + width])
    return views + [tf.reverse(view, axis=[2]) for view in views]


def jitter_colour(inputs, strength, draws):
    """Changes every picture's brightness, contrast and saturation.

    Departure from the paper, which is silent on colour: a small training set has each object in
    few lights only.

    Args:
        inputs: float32 `(batch, height, width, 3)` in about +-128.
        strength: Contrast and saturation are scaled by up to this much more or less, brightness
            shifted by up to this share of the half range, 128.
        draws: float32 `(batch, COLOUR_DRAWS)` in [0, 1), which decide by how much.

    Returns:
        float32, shaped like `inputs`.

    Reference:
        Howard (2013), "Some Improvements on Deep Convolutional Neural Network Based Image
        Classification", section 2.2.
    """
    change = strength * (2 * draws - 1)
    brightness, contrast, saturation = tf.unstack(change[:, :, None, None, None], axis=1)
    grey = tf.reduce_mean(inputs, axis=3, keepdims=True)
    level = tf.reduce_mean(grey, axis=(1, 2), keepdims=True)
    # Both scalings in one: of what differs from grey, and of grey's difference from its mean.
    coloured = (inputs - grey) * (1 + saturation) * (1 + contrast)
    return coloured + (grey - level) * (1 + contrast) + level + 128 * brightness
