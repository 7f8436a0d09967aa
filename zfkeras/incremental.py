"""A forward pass that computes only what a change of part of the picture can change.

The network goes over the unchanged picture once. For every change after that, each layer computes
the window of its maps that can differ, from windows of the maps below, the rest of which is as it
was. Windows of one tensor have one size, so that many changes run together; from the layer on that
sees everything, whole tensors are computed. The result is that of whole passes.

Reference:
    Nakandala et al. (2019), "Incremental and Approximate Inference for Faster Occlusion-based Deep
    CNN Explanations", SIGMOD.
"""

import numpy as np
import tensorflow as tf

from zfkeras import ops
from zfkeras.graph import INPUT
from zfkeras.rules import HERE


class IncrementalPass:
    """Forward passes over one picture, of which a square each is another.

    Args:
        graph: A `zfkeras.graph.Graph`.
        tensors: Numbers of the tensors that are asked for.
        rows, columns: int `(count,)`, first row and column of each square.
        size: Side of the squares.
    """

    def __init__(self, graph, tensors, rows, columns, size):
        self._graph, self._steps = graph, graph.steps_to(tensors)
        # Of every tensor, for rows and for columns: where its windows start, and their size.
        self._windows = {INPUT: [(np.asarray(rows), size), (np.asarray(columns), size)]}
        for step in self._steps:
            self._windows[step.result] = self._changed(step)

    @property
    def share(self):
        """Share of the units of all maps that is computed for a square."""
        computed = total = 0
        for step in self._steps:
            shape = self._graph.shapes.get(step.result, ())
            if len(shape) == 3:
                windows = self._windows[step.result]
                total += np.prod(shape)
                computed += shape[2] * (
                    np.prod(shape[:2]) if windows is None else windows[0][1] * windows[1][1]
                )
        return computed / total if total else 1.0

    def unchanged(self, inputs):
        """All tensors of the picture as it is, `inputs` float32 `(1, height, width, channels)`."""
        return self._graph.run(self._steps, inputs)

    def run(self, unchanged, squares, which):
        """What becomes of squares.

        Args:
            unchanged: What `unchanged` gave.
            squares: float32 `(batch, size, size, channels)`, what stands in them.
            which: int32 `(batch,)`, which of the squares these are.

        Returns:
            `{number: tensor}`; of a tensor with windows, only these.
        """
        values = {INPUT: squares}
        for step in self._steps:
            # Layers of half precision cast what windows of them leave as it is.
            made = self._run(step, values, unchanged, which)
            values[step.result] = tf.cast(made, unchanged[step.result].dtype)
        return values

    def places(self, tensor, which):
        """Rows and columns that the windows of a tensor's maps cover; None if it is computed whole.

        Returns:
            int32 `(batch, height)` and `(batch, width)`.
        """
        if self._windows[tensor] is None:
            return None
        return [
            tf.gather(tf.constant(starts, tf.int32), which)[:, None] + tf.range(size)
            for starts, size in self._windows[tensor]
        ]

    def _changed(self, step):
        """Windows of a step's result that hold all that can change; None if that is all of it."""
        shape = self._graph.shapes.get(step.result, ())
        windows = [self._windows[source] for source in step.sources]
        if len(shape) != 3 or step.problem or not step.primitive.fits_windows or None in windows:
            return None
        made = []
        for axis in (0, 1):
            reach, extent = step.primitive.reach[axis], shape[axis]
            lows, highs = [], []
            for source, window in zip(step.sources, windows, strict=True):
                below = self._graph.extent(source, axis)
                if self._graph.sees_everything(step, source):
                    return None
                starts, size = window[axis]
                before = reach.before(below)
                lows.append(-((reach.window - 1 - before - starts) // reach.strides))
                highs.append((starts + size - 1 + before) // reach.strides)
            low = np.clip(np.min(lows, axis=0), 0, extent - 1)
            high = np.clip(np.max(highs, axis=0), 0, extent - 1)
            # Where filters lie further apart than they are wide, no unit may see a change.
            size = max(int((high - low).max()) + 1, 1)
            made.append((np.minimum(low, extent - size), size))
        if all(size == extent for (_, size), extent in zip(made, shape, strict=False)):
            return None
        return made

    def _run(self, step, values, unchanged, which):
        if self._windows[step.result] is None:
            return step.run(
                *(self._whole(source, values, unchanged, which) for source in step.sources)
            )
        if self._unit_by_unit(step):
            return step.run(*(values[source] for source in step.sources))
        places, parts = self.places(step.result, which), []
        for source in step.sources:
            needed = [
                places[axis][:, :1] * reach.strides
                - reach.before(self._graph.extent(source, axis))
                + tf.range((places[axis].shape[1] - 1) * reach.strides + reach.window)
                for axis, reach in enumerate(step.primitive.reach)
            ]
            parts.append(self._part(source, needed, values, unchanged, which))
        if step.primitive.run_inside is None:
            return step.run(*parts)
        inside = ops.inside_maps(*needed, self._graph.shapes[source][:2])
        return step.primitive.run_inside(parts[0], inside)

    def _unit_by_unit(self, step):
        """Whether a step makes the very windows that it takes."""
        made = self._windows[step.result]
        return step.primitive.reach == HERE and all(
            size == own_size and np.array_equal(starts, own_starts)
            for source in step.sources
            for (starts, size), (own_starts, own_size) in zip(
                self._windows[source], made, strict=True
            )
        )

    def _whole(self, source, values, unchanged, which):
        if self._windows[source] is None:
            return values[source]
        extent = self._graph.shapes[source][:2]
        count = tf.shape(which)[0]
        places = [tf.tile(tf.range(side)[None], (count, 1)) for side in extent]
        return self._part(source, places, values, unchanged, which)

    def _part(self, source, places, values, unchanged, which):
        """A tensor at given places: what has changed of it, and the rest as it was.

        What lies outside the maps is whatever stands at their border.
        """
        windows, (height, width, channels) = self.places(source, which), self._graph.shapes[source]
        before, size = height * width, values[source].shape[1:3]
        rows, columns = (
            tf.clip_by_value(place, 0, extent - 1)
            for place, extent in zip(places, (height, width), strict=True)
        )
        own_rows, own_columns = (
            place - own[:, :1] for place, own in zip((rows, columns), windows, strict=True)
        )
        owners = tf.range(tf.shape(which)[0])[:, None, None] * (size[0] * size[1])
        changed = before + owners + own_rows[:, :, None] * size[1] + own_columns[:, None, :]
        as_it_was = rows[:, :, None] * width + columns[:, None, :]
        inside = ops.inside_maps(own_rows, own_columns, size)[..., 0]
        # One table of both, from which everything is taken at once.
        table = [tf.reshape(maps, (-1, channels)) for maps in (unchanged[source], values[source])]
        return tf.gather(tf.concat(table, 0), tf.where(inside, changed, as_it_was))
