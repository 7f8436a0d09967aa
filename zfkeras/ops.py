"""Pure tensor functions that the layers and the deconvnet are made of. Channels last, TensorFlow.

Pooling never pads: a window that reaches past the border is cut off there (ceil rounding), so a
side of `n` units and windows of `size` every `strides` units give `ceil((n - size) / strides) + 1`.
"""

import tensorflow as tf

OVERLAP_RULES = ("sum", "max")

# TensorFlow lays down strided filters of so few channels three times as slowly as it could.
FEW_CHANNELS = 4


def filter_maps(maps, kernel, bias, strides=1, padding=0):
    """Convolves maps with filters and adds a bias to each result.

    Args:
        maps: Float tensor `(batch, height, width, channels)`.
        kernel: `(kernel_size, kernel_size, channels / groups, filters)`, same dtype.
        bias: `(filters,)`, same dtype.
        strides: Step in both directions.
        padding: Zeros on every side.

    Returns:
        `(batch, filtered_height, filtered_width, filters)`.
    """
    if padding and not _keeps_size(kernel, strides, padding):
        # TensorFlow's own explicit padding has no oneDNN gradient: 2 to 50 times slower on a CPU.
        maps = tf.pad(maps, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
        padding = 0
    filtered = tf.nn.conv2d(maps, kernel, strides, "SAME" if padding else "VALID")
    return tf.nn.bias_add(filtered, bias)


def transpose_filters(signal, kernel, output_size, strides=1, padding=0, groups=1):
    """The adjoint of `filter_maps` without its bias: every unit lays down its filter.

    Args:
        signal: Float tensor `(batch, filtered_height, filtered_width, filters)`.
        kernel: The kernel of the forward convolution.
        output_size: `(height, width)` of the maps that were filtered.
        strides, padding, groups: Those of the forward convolution.

    Returns:
        `(batch, height, width, channels)`.
    """
    height, width = output_size
    batch, channels = tf.shape(signal)[0], kernel.shape[2] * groups
    if strides > 1 and groups == 1 and channels <= FEW_CHANNELS:
        padded = _transpose_by_phases(signal, kernel, (height + padding, width + padding), strides)
        return padded[:, padding:, padding:]
    if padding and _keeps_size(kernel, strides, padding):
        shape = (batch, height, width, channels)
        return tf.nn.conv2d_transpose(signal, kernel, shape, strides, "SAME")
    shape = (batch, height + 2 * padding, width + 2 * padding, channels)
    padded = tf.nn.conv2d_transpose(signal, kernel, shape, strides, "VALID")
    return padded[:, padding : padding + height, padding : padding + width]


def _transpose_by_phases(signal, kernel, output_size, strides):
    """`transpose_filters` without padding, as one plain convolution.

    The pixels that lie `strides` apart all see the signal through the same part of a filter. Each
    part is a small filter of its own, and their results are interleaved.
    """
    size, _, channels, count = kernel.shape
    reach = -(-size // strides)
    missing = reach * strides - size
    parts = tf.pad(kernel, ((0, missing), (0, missing), (0, 0), (0, 0)))
    parts = tf.reshape(parts, (reach, strides, reach, strides, channels, count))
    parts = tf.transpose(tf.reverse(parts, (0, 2)), (0, 2, 5, 1, 3, 4))
    parts = tf.reshape(parts, (reach, reach, count, strides * strides * channels))
    # Rows and columns that the forward convolution skipped are silent.
    places = [-(-side // strides) + reach - 1 for side in output_size]
    after = [
        (reach - 1, max(place - known - (reach - 1), 0))
        for place, known in zip(places, signal.shape[1:3], strict=True)
    ]
    padded = tf.pad(signal, ((0, 0), *after, (0, 0)))
    interleaved = tf.nn.depth_to_space(tf.nn.conv2d(padded, parts, 1, "VALID"), strides)
    return interleaved[:, : output_size[0], : output_size[1]]


def pick_filters(kernel, feature_maps, groups=1):
    """What `transpose_filters` makes of single units of value 1: their filters as they are.

    Args:
        kernel: `(kernel_size, kernel_size, channels / groups, filters)`.
        feature_maps: int32 `(count,)`, which filters.
        groups: Of the forward convolution.

    Returns:
        `(count, kernel_size, kernel_size, channels)`.
    """
    filters = tf.gather(tf.transpose(kernel, (3, 0, 1, 2)), feature_maps)
    if groups == 1:
        return filters
    group = feature_maps // (kernel.shape[3] // groups)
    own = tf.one_hot(group, groups, dtype=kernel.dtype)[:, None, None, :, None]
    spread = filters[:, :, :, None, :] * own
    return tf.reshape(spread, (-1, *kernel.shape[:2], kernel.shape[2] * groups))


def max_pool(maps, size, strides):
    """Max pooling with ceil rounding.

    Args:
        maps: Float tensor `(batch, height, width, channels)` of known height and width.
        size, strides: Side of the window and step between windows.

    Returns:
        `(batch, pooled_height, pooled_width, channels)`.
    """
    maps, padding = cover_border(maps, size, strides)
    return tf.nn.max_pool2d(maps, size, strides, padding)


def max_pool_with_switches(maps, size, strides):
    """`max_pool`, and where in the map each maximum lay.

    Returns:
        The pooled maps, and switches: int64, shaped like them, each the flat index
        `(row * width + column) * channels + channel` of a maximum within its own picture's maps.
        Among equal values the first one in reading order wins.

    Reference:
        Zeiler & Fergus (2014), section 2.1, "Unpooling".
    """
    width, channels = maps.shape[2], maps.shape[3]
    covered, padding = cover_border(maps, size, strides)
    # The CPU kernel knows neither float16 nor bfloat16; float32 holds both exactly.
    pooled, switches = tf.nn.max_pool_with_argmax(
        tf.cast(covered, tf.float32),
        size,
        strides,
        padding,
        output_dtype=tf.int64,
        include_batch_in_index=False,
    )
    if covered.shape[2] != width:
        row = switches // (covered.shape[2] * channels)
        switches -= row * ((covered.shape[2] - width) * channels)
    return tf.cast(pooled, maps.dtype), switches


def max_unpool(pooled, switches, output_size, overlap="sum"):
    """Places every pooled value back at the location its switch recorded, zeros elsewhere.

    Args:
        pooled: Float tensor `(batch, pooled_height, pooled_width, channels)`.
        switches: int64, shaped like `pooled`, as `max_pool_with_switches` gives them.
        output_size: `(height, width)` of the map that was pooled.
        overlap: What happens where overlapping windows share a switch: their values are added
            (`"sum"`, the adjoint of max pooling) or the largest stays (`"max"`). The paper does
            not say.

    Returns:
        `(batch, height, width, channels)`.

    Reference:
        Zeiler & Fergus (2014), section 2.1, "Unpooling".
    """
    require_overlap_rule(overlap)
    height, width = output_size
    batch, channels = tf.shape(pooled)[0], pooled.shape[-1]
    per_picture = height * width * channels
    starts = tf.range(tf.cast(batch, tf.int64)) * per_picture
    locations = tf.reshape(switches + starts[:, None, None, None], (-1, 1))
    values = tf.reshape(pooled, (-1,))
    total = tf.reshape(tf.cast(batch, tf.int64) * per_picture, (1,))
    if overlap == "sum":
        flat = tf.scatter_nd(locations, values, total)
    else:
        lowest = pooled.dtype.min
        flat = tf.tensor_scatter_nd_max(tf.fill(total, lowest), locations, values)
        flat = tf.where(flat == lowest, tf.zeros_like(flat), flat)
    return tf.reshape(flat, (batch, height, width, channels))


def unpool_to_maxima(signal, maps, pooled, size, strides):
    """`max_unpool` with the overlap rule `"sum"`, the switches found anew: many times as fast.

    Args:
        signal: float32 `(batch, pooled_height, pooled_width, channels)`.
        maps: float32 `(batch, height, width, channels)`, which windows cover exactly.
        pooled: What pooling them gave, shaped like `signal`.
        size, strides: Side of the window and step between windows.

    Returns:
        float32, shaped like `maps`.
    """
    return tf.raw_ops.MaxPoolGrad(
        orig_input=maps,
        orig_output=pooled,
        grad=signal,
        ksize=(1, size, size, 1),
        strides=(1, strides, strides, 1),
        padding="VALID",
    )


def cut_windows(maps, owners, rows, columns):
    """Windows of maps, zero where they reach past the border.

    Args:
        maps: Float tensor `(batch, height, width, channels)`.
        owners: int32 `(count,)`, whose maps each window is of.
        rows, columns: int32 `(count, window_height)` and `(count, window_width)`, which places it
            covers; those outside the maps are allowed.

    Returns:
        `(count, window_height, window_width, channels)`.
    """
    height, width, channels = maps.shape[1:]
    places = tf.clip_by_value(rows, 0, height - 1)[:, :, None] * width
    places += tf.clip_by_value(columns, 0, width - 1)[:, None, :]
    places += owners[:, None, None] * (height * width)
    windows = tf.gather(tf.reshape(maps, (-1, channels)), places)
    inside = inside_maps(rows, columns, (height, width))
    return tf.cond(
        tf.reduce_all(inside),
        lambda: windows,
        lambda: tf.where(inside, windows, tf.zeros_like(windows)),
    )


def inside_maps(rows, columns, extent):
    """Which places of windows lie inside maps of `(height, width)`.

    Args:
        rows, columns: As in `cut_windows`.

    Returns:
        bool `(count, window_height, window_width, 1)`.
    """
    inside_rows, inside_columns = (
        (places >= 0) & (places < limit)
        for places, limit in zip((rows, columns), extent, strict=True)
    )
    return inside_rows[:, :, None, None] & inside_columns[:, None, :, None]


def normalize_contrast(maps, radius, bias, alpha, beta):
    """Divides every unit by the activity of the feature maps around its own at the same place.

    `x / (bias + alpha * s) ** beta`, s being the sum of squares over the maps at most `radius`
    away. Computed and returned in float32, or in bfloat16 if the maps are: it reaches as far as
    float32 does, while squares of float16 overflow.

    Args:
        maps: Float tensor `(..., channels)`.
        radius, bias, alpha, beta: As in `zfkeras.architecture.Contrast`.

    Reference:
        Krizhevsky et al. (2012), section 3.3.
    """
    dtype = tf.bfloat16 if maps.dtype == tf.bfloat16 else tf.float32
    channels = maps.shape[-1]
    # As a product with a band matrix this is faster than `tf.nn.lrn`, whose gradient is a scalar
    # loop on a CPU, and no radius is too large for a GPU.
    position = tf.range(channels)
    band = tf.cast(tf.abs(position[:, None] - position[None, :]) <= radius, dtype)

    def sum_around(values):
        if radius >= channels - 1:
            return tf.reduce_sum(values, axis=-1, keepdims=True)
        return tf.tensordot(values, band, 1)

    # The gradient in closed form reads the maps half as often as what would be derived from the
    # operations below, and reading memory is all that this layer costs.
    @tf.custom_gradient
    def normalize(maps):
        scale = bias + alpha * sum_around(tf.square(maps))
        if beta == 0.5:
            factor = tf.math.rsqrt(scale)
        elif beta == 0.75:
            factor = tf.math.rsqrt(scale * tf.sqrt(scale))
        else:
            factor = scale**-beta
        normalized = maps * factor

        def gradient(upstream):
            shared = sum_around(upstream * normalized / scale)
            return upstream * factor - 2 * alpha * beta * maps * shared

        return normalized, gradient

    return normalize(tf.cast(maps, dtype))


def require_overlap_rule(overlap):
    """Raises ValueError unless `overlap` names a rule of `max_unpool`."""
    if overlap not in OVERLAP_RULES:
        raise ValueError(
            f"`overlap` must be one of {', '.join(OVERLAP_RULES)}. Received: overlap={overlap!r}."
        )


def _keeps_size(kernel, strides, padding):
    return strides == 1 and 2 * padding == kernel.shape[0] - 1


def cover_border(maps, size, strides):
    """Maps and a TensorFlow padding rule under which the windows reach the whole map."""
    height, width = maps.shape[1:3]
    missing = [_missing(side, size, strides) for side in (height, width)]
    if missing == [0, 0]:
        return maps, "VALID"
    same = [max((-(-side // strides) - 1) * strides + size - side, 0) for side in (height, width)]
    # TensorFlow splits "SAME" padding between both ends; one missing unit goes to the far end.
    if missing == same and max(missing) <= 1:
        return maps, "SAME"
    paddings = ((0, 0), (0, missing[0]), (0, missing[1]), (0, 0))
    return tf.pad(maps, paddings, constant_values=maps.dtype.min), "VALID"


def _missing(side, size, strides):
    return -(-(side - size) // strides) * strides + size - side
