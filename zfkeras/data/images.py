"""Preparing pictures for a network, as in section 3 of the paper. TensorFlow functions.

`images` are uint8 in [0, 255]; `inputs` are float32 with the mean image subtracted, in about +-128.
"""

import tensorflow as tf

from zfkeras.choices import CROPS

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
