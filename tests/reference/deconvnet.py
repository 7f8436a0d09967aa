"""Section 2.1 of the paper in NumPy loops, one unit at a time; slow and in the paper's order."""

import numpy as np

from zfkeras.architecture import Contrast, Filtering, Pooling, Rectification


def project(architecture, weights, picture, layer, feature_map, row, column, start, overlap):
    """Projection of one unit of one picture.

    Args:
        architecture: The network.
        weights: `{block name: (kernel, bias)}`.
        picture: float `(height, width, 3)`.
        layer, feature_map, row, column: The unit, after rectification.
        start: Value of the unit, or None for its activation.
        overlap: `"sum"` or `"max"`.
    """
    way_up, maps = [], picture.astype(np.float64)
    for block in architecture.blocks:
        for stage in block.stages:
            if block.name == layer and isinstance(stage, Pooling | Contrast):
                break
            entering = maps
            maps, switches = forward(stage, maps, weights[block.name])
            way_up.append((stage, entering.shape, switches, weights[block.name]))
        if block.name == layer:
            break

    signal = np.zeros_like(maps)
    signal[row, column, feature_map] = maps[row, column, feature_map] if start is None else start
    for stage, shape, switches, (kernel, _) in reversed(way_up):
        if isinstance(stage, Pooling):
            signal = unpool(signal, switches, shape, overlap)
        elif isinstance(stage, Rectification):
            signal = np.maximum(signal, 0)
        elif isinstance(stage, Filtering):
            signal = lay_down_filters(signal, kernel, stage, shape)
        # Contrast normalization is skipped on the way down.
    return maps, signal


def forward(stage, maps, weights):
    """The maps after a stage, and the switches if it pools."""
    if isinstance(stage, Filtering):
        return convolve(maps, *weights, stage), None
    if isinstance(stage, Rectification):
        return np.maximum(maps, 0), None
    if isinstance(stage, Pooling):
        return pool(maps, stage.size, stage.strides)
    return normalize(maps, stage), None


def convolve(maps, kernel, bias, stage):
    padded = np.pad(maps, [(stage.padding,) * 2, (stage.padding,) * 2, (0, 0)])
    size, step = stage.kernel_size, stage.strides
    height = (padded.shape[0] - size) // step + 1
    width = (padded.shape[1] - size) // step + 1
    filtered = np.zeros((height, width, stage.maps))
    for row, column, unit in np.ndindex(filtered.shape):
        first, count = group(unit, maps.shape[2], stage)
        window = padded[row * step : row * step + size, column * step : column * step + size]
        window = window[..., first : first + count]
        filtered[row, column, unit] = np.sum(window * kernel[..., unit]) + bias[unit]
    return filtered


def lay_down_filters(signal, kernel, stage, shape):
    size, step, padding = stage.kernel_size, stage.strides, stage.padding
    canvas = np.zeros((shape[0] + 2 * padding, shape[1] + 2 * padding, shape[2]))
    for row, column, unit in zip(*np.nonzero(signal), strict=True):
        first, count = group(unit, shape[2], stage)
        canvas[row * step : row * step + size, column * step : column * step + size][
            ..., first : first + count
        ] += signal[row, column, unit] * kernel[..., unit]
    return canvas[padding : padding + shape[0], padding : padding + shape[1]]


def group(unit, channels, stage):
    """First channel and number of channels that a feature map is connected to."""
    count = channels // stage.groups
    return unit // (stage.maps // stage.groups) * count, count


def pool(maps, size, strides):
    height, width, channels = maps.shape
    pooled_shape = (
        *(int(np.ceil((side - size) / strides)) + 1 for side in (height, width)),
        channels,
    )
    pooled, switches = np.zeros(pooled_shape), np.zeros(pooled_shape, np.int64)
    for row, column, channel in np.ndindex(pooled_shape):
        best = None
        for i in range(row * strides, min(row * strides + size, height)):
            for j in range(column * strides, min(column * strides + size, width)):
                if best is None or maps[i, j, channel] > maps[best[0], best[1], channel]:
                    best = i, j
        pooled[row, column, channel] = maps[best[0], best[1], channel]
        switches[row, column, channel] = (best[0] * width + best[1]) * channels + channel
    return pooled, switches


def unpool(signal, switches, shape, overlap):
    flat, touched = np.zeros(int(np.prod(shape))), set()
    for place in np.ndindex(signal.shape):
        switch = switches[place]
        if overlap == "sum":
            flat[switch] += signal[place]
        else:
            flat[switch] = max(flat[switch], signal[place]) if switch in touched else signal[place]
        touched.add(switch)
    return flat.reshape(shape)


def normalize(maps, stage):
    normalized = np.zeros_like(maps)
    for channel in range(maps.shape[2]):
        near = maps[..., max(channel - stage.radius, 0) : channel + stage.radius + 1]
        scale = (stage.bias + stage.alpha * np.sum(near**2, axis=2)) ** stage.beta
        normalized[..., channel] = maps[..., channel] / scale
    return normalized
