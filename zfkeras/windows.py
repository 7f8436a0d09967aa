"""Up and down a network within the window that a unit sees, instead of over the whole picture.

A single unit depends on, and projects into, nothing but its receptive field. All windows of a layer
have one size, so they fill batches; a window that reaches past a map's border is masked there, so
the result is that of the whole picture. For `conv5` of Figure 3 this is a fifth of the arithmetic,
for `conv3` a twentieth.
"""

import tensorflow as tf

from zfkeras import ops, receptive_field
from zfkeras.architecture import Contrast, Filtering, Pooling, Rectification


class WindowedChain:
    """The blocks of a network up to a layer's rectified maps, within the windows of its units.

    Args:
        conv_blocks: Built `ConvBlock`s in order, the layer's own last.
        architecture: What they form, an `Architecture`.
        channels: How many feature maps the layer has.
        overlap: Rule for switches shared by overlapping pooling windows: `"sum"` or `"max"`.
    """

    def __init__(self, conv_blocks, architecture, channels, overlap="sum"):
        ops.require_overlap_rule(overlap)
        self.overlap = overlap
        layer = conv_blocks[-1].name
        self._levels = receptive_field.levels(architecture, layer)
        self.window_size = self._levels[0].size
        self._channels = channels
        steps = [(block, stage) for block in conv_blocks for stage in block.stages]
        # Pooling and contrast normalization of the layer itself come after its rectified maps.
        self._steps = steps[: len(self._levels) - 1]

    def cut(self, inputs, owners, rows, columns):
        """The windows of units, zero where they reach past their picture.

        Args:
            inputs: Float tensor `(batch, height, width, 3)`.
            owners: int32 `(count,)`, the picture of each unit.
            rows, columns: int32 `(count,)`, position of each unit in its feature map.

        Returns:
            `(count, window_size, window_size, 3)`.
        """
        return ops.cut_windows(inputs, owners, *self._spans(0, (rows, columns)))

    def project(self, windows, units, starts=None):
        """Takes single units down to pixel space.

        Args:
            windows: What `cut` gave.
            units: int32 `(count, 3)`: row, column, feature map.
            starts: float32 `(count,)`, the value that each unit is set to; its activation if None.

        Returns:
            Activations, float32 `(count,)`, and projections, shaped like `windows`, zero outside
            the picture.
        """
        places = tf.unstack(units[:, :2], axis=1)
        maps, pooled = self._ascend(windows, places)
        activations = tf.gather(maps[:, 0, 0], units[:, 2], batch_dims=1)
        activations = tf.cast(activations, tf.float32)
        starts = activations if starts is None else starts
        return activations, self._descend(starts, units[:, 2], pooled, places)

    def ascend_whole(self, inputs, chosen=None):
        """Whole pictures' maps of the layer, and what windows of them are cut from.

        Args:
            inputs: Float tensor `(batch, height, width, 3)`.
            chosen: int32 `(maps,)`, the feature maps to make, of a layer without groups; all of
                them if None. Making few of them saves most of the layer's work.

        Returns:
            The rectified maps, float32 `(batch, map_height, map_width, maps)`, and by level what
            every pooling below took in.
        """
        maps, whole = tf.cast(inputs, self._steps[0][0].compute_dtype), {}
        for level, (block, stage) in enumerate(self._steps):
            match stage:
                case Filtering(strides=strides, padding=padding):
                    kernel, bias = (tf.cast(one, maps.dtype) for one in (block.kernel, block.bias))
                    if chosen is not None and block is self._steps[-1][0]:
                        kernel, bias = (tf.gather(one, chosen, axis=-1) for one in (kernel, bias))
                    maps = ops.filter_maps(maps, kernel, bias, strides, padding)
                case Rectification():
                    maps = tf.nn.relu(maps)
                case Pooling(size=size, strides=strides):
                    whole[level], maps = maps, ops.max_pool(maps, size, strides)
                case Contrast():
                    maps = block.contrast(maps)
        return tf.cast(maps, tf.float32), whole

    def project_below(self, whole, owners, units, starts):
        """As `project`, of units whose pictures have gone up whole: they need not go up again.

        Args:
            whole: What `ascend_whole` gave.
            owners: int32 `(count,)`, the picture of each unit.
            units: int32 `(count, 3)`: row, column, feature map.
            starts: float32 `(count,)`.

        Returns:
            The projections.
        """
        places, pooled = tf.unstack(units[:, :2], axis=1), {}
        for level, maps in whole.items():
            stage = self._steps[level][1]
            windows = ops.cut_windows(maps, owners, *self._spans(level, places))
            covered = self._keep_inside(windows, level, places, maps.dtype.min)
            pooled[level] = (
                covered,
                tf.nn.max_pool2d(covered, stage.size, stage.strides, "VALID"),
            )
        return self._descend(starts, units[:, 2], pooled, places)

    def _ascend(self, windows, places):
        """The units' maps, 1 x 1, and by level what every pooling below took in and gave."""
        maps, pooled = tf.cast(windows, self._steps[0][0].compute_dtype), {}
        for level, (block, stage) in enumerate(self._steps):
            match stage:
                case Filtering():
                    maps = self._keep_inside(maps, level, places, 0.0)
                    kernel, bias = (tf.cast(one, maps.dtype) for one in (block.kernel, block.bias))
                    maps = ops.filter_maps(maps, kernel, bias, stage.strides)
                case Rectification():
                    maps = tf.nn.relu(maps)
                case Pooling(size=size, strides=strides):
                    covered = self._keep_inside(maps, level, places, maps.dtype.min)
                    maps = tf.nn.max_pool2d(covered, size, strides, "VALID")
                    pooled[level] = covered, maps
                case Contrast():
                    maps = block.contrast(maps)
        return maps, pooled

    def _descend(self, starts, feature_maps, pooled, places):
        signal, alone = starts, True
        for level in reversed(range(len(self._steps))):
            block, stage = self._steps[level]
            match stage:
                case Filtering() if alone:
                    # Filtering a single unit is copying its filter.
                    filters = ops.pick_filters(block.kernel, feature_maps, stage.groups)
                    signal, alone = filters * signal[:, None, None, None], False
                case Filtering():
                    size = (self._levels[level].size,) * 2
                    signal = ops.transpose_filters(
                        signal, block.kernel, size, stage.strides, groups=stage.groups
                    )
                case Rectification():
                    signal = tf.nn.relu(signal)
                case Pooling():
                    if alone:
                        signal, alone = _on_its_map(signal, feature_maps, self._channels), False
                    signal = self._unpool(signal, *pooled[level], stage)
                case Contrast():
                    continue
            if not alone:
                signal = self._keep_inside(signal, level, places, 0.0)
        return _on_its_map(signal, feature_maps, self._channels) if alone else signal

    def _unpool(self, signal, maps, pooled, stage):
        maps, pooled = tf.cast(maps, tf.float32), tf.cast(pooled, tf.float32)
        if self.overlap == "sum":
            return ops.unpool_to_maxima(signal, maps, pooled, stage.size, stage.strides)
        _, switches = ops.max_pool_with_switches(maps, stage.size, stage.strides)
        return ops.max_unpool(signal, switches, maps.shape[1:3], self.overlap)

    def _keep_inside(self, maps, level, places, outside):
        """Replaces what lies past the border of the map that the windows are cut from."""
        inside = ops.inside_maps(*self._spans(level, places), self._levels[level].extent)
        return tf.cond(
            tf.reduce_all(inside),
            lambda: maps,
            lambda: tf.where(inside, maps, tf.constant(outside, maps.dtype)),
        )

    def _spans(self, level, places):
        """Rows and columns of a level's map that the units' windows span, `(count, size)` each."""
        field = self._levels[level]
        return [
            place[:, None] * field.jump + field.offset + tf.range(field.size) for place in places
        ]


def _on_its_map(signal, feature_maps, channels):
    """Single units as maps of 1 x 1, every other map being silent."""
    return (signal[:, None] * tf.one_hot(feature_maps, channels))[:, None, None, :]
