"""The deconvnet of any Keras model: Functional, Sequential, nested.

The model's layers are followed from the picture to the layer in question, each doing what it does;
what each does to a signal on the way down is the rule of its class (`zfkeras.rules`), which for
everything linear is its adjoint. So a projection is an automatic derivative in which rectifiers,
max pooling and contrast normalization have their own rules.

Where units see less than the picture, they go up and down within their windows, as in
`zfkeras.windows`; else whole pictures do.
"""

import numpy as np
import tensorflow as tf

from zfkeras import ops
from zfkeras.graph import INPUT, Graph, UnknownLayer
from zfkeras.projections import Projector, Spans
from zfkeras.rules import SIGNAL_RULES

# Windows overlap, so that many small ones are run sooner than a picture, and large ones later.
LARGEST_WINDOW = 0.6


class Mirror(Projector):
    """Projects units of a Keras model that somebody brings.

    Args:
        model: A Functional or Sequential model, or one that has such models among its layers, of
            one picture. It is used as it is and never changed.
        input_size: `(height, width)` of the picture, needed if the model leaves it open.
        signal_rule: How a signal passes a rectifier: `"deconvnet"`, which is the paper's, or
            `"guided"` (Springenberg et al., 2014) or `"gradient"` (Simonyan et al., 2013), which
            are not, for comparison.
        overlap: Rule for switches shared by overlapping pooling windows, `"sum"` or `"max"`.
        linear_layers: Classes of layers of your own that are linear, a bias aside.
        front: Another such model, whose result is the model's picture: preprocessing.

    Attributes:
        feature_layers: Names of the layers whose maps are rectified, lowest first. Any other layer
            with a rule, as have all below it, can be projected too.

    Raises:
        ValueError: If the model takes no picture, has no rectified maps that can be projected, or a
            rule is unknown.

    Reference:
        Zeiler & Fergus (2014), section 2.1.
    """

    def __init__(
        self,
        model,
        input_size=None,
        signal_rule="deconvnet",
        overlap="sum",
        linear_layers=(),
        front=None,
    ):
        ops.require_overlap_rule(overlap)
        if signal_rule not in SIGNAL_RULES:
            raise ValueError(
                f"`signal_rule` must be one of {', '.join(SIGNAL_RULES)}. "
                f"Received: signal_rule={signal_rule!r}."
            )
        self.model = model
        self.graph = Graph(model, input_size, signal_rule, overlap, linear_layers, front)
        self.input_shape = self.graph.input_shape
        self.feature_layers = self._rectified_layers()
        if not self.feature_layers:
            problem = next((step for step in self.graph.steps if step.problem), None)
            raise ValueError(
                f"Model {model.name!r} has no layer of rectified maps that can be projected"
                + (
                    f": layer {problem.layer!r} ({problem.kind}) {problem.problem}."
                    if problem
                    else ". Expected convolutions and ReLU."
                )
            )

    def feature_map_counts(self):
        """`{layer: number of feature maps}` of `feature_layers`, lowest first."""
        return {layer: self.feature_map_count(layer) for layer in self.feature_layers}

    def feature_map_count(self, layer):
        """How many feature maps a layer has."""
        return self._shape(layer)[-1]

    def map_size(self, layer):
        """`(height, width)` of a layer's maps; 1 x 1 if it has units without a place."""
        shape = self._shape(layer)
        return shape[:2] if len(shape) == 3 else (1, 1)

    def spans(self, layer):
        """What the units of a layer see, `Spans`.

        Windows that are as large as the picture or larger are the whole picture.
        """
        steps, boxes, windows = self._path(layer), [], []
        for axis, count in enumerate(self.map_size(layer)):
            units, extent = np.arange(count), self.input_shape[axis]
            first, last = self.graph.ranges(steps, units, axis, to_the_border=True)[INPUT]
            boxes.append(np.stack([first, last + 1], axis=1))
            first, last = self.graph.ranges(steps, units, axis, to_the_border=False)[INPUT]
            size = (last - first + 1).max()
            if size >= extent:
                first, size = np.zeros_like(first), extent
            windows.append(np.stack([first, first + size], axis=1))
        return Spans(tuple(boxes), tuple(windows))

    def rectified_maps(self, inputs, layers):
        """The maps of several layers in one plain forward pass: `{layer: float32}`."""
        for layer in layers:
            self._path(layer)
        tensors = self.graph.run(self.graph.union_of_paths(layers), inputs)
        return {layer: _as_maps(tensors[self.graph.tensors[layer]]) for layer in layers}

    def window_projection(self, layer):
        """See `Projector`."""
        size, picture = np.array(self.window_size(layer)), np.array(self.input_shape[:2])
        small = np.all(size < picture) and size.prod() <= LARGEST_WINDOW * picture.prod()
        if small and self.graph.fits_windows(self._path(layer)):
            return self._within_windows(layer)
        return self._over_whole_pictures(layer)

    def _over_whole_pictures(self, layer):
        steps, spans = self._path(layer), self.spans(layer)

        def project(inputs, owners, units, starts=None):
            pictures = tf.gather(inputs, owners)
            with tf.GradientTape() as tape:
                tape.watch(pictures)
                tensors = self.graph.run(steps, pictures)
                maps = _as_maps(tensors[self.graph.tensors[layer]])
            numbered = tf.concat([tf.range(tf.shape(units)[0])[:, None], units], axis=1)
            activations = tf.gather_nd(maps, numbered)
            signal = tf.scatter_nd(
                numbered, activations if starts is None else starts, tf.shape(maps)
            )
            projections = tape.gradient(
                maps, pictures, signal, unconnected_gradients=tf.UnconnectedGradients.ZERO
            )
            return activations, _cut(projections, spans.windows, units)

        return project

    def _within_windows(self, layer):
        windows = _Windows(self.graph, self._path(layer))
        tensor = self.graph.tensors[layer]

        def project(inputs, owners, units, starts=None):
            places = tf.unstack(units[:, :2], axis=1)
            seen = ops.cut_windows(inputs, owners, *windows.places(INPUT, places))
            with tf.GradientTape() as tape:
                tape.watch(seen)
                maps = tf.cast(windows.run(seen, places)[tensor][:, 0, 0], tf.float32)
                activations = tf.gather(maps, units[:, 2], batch_dims=1)
            signal = activations if starts is None else starts
            signal = signal[:, None] * tf.one_hot(units[:, 2], maps.shape[-1])
            projections = tape.gradient(
                maps, seen, signal, unconnected_gradients=tf.UnconnectedGradients.ZERO
            )
            return activations, windows.keep_inside(projections, INPUT, places)

        return project

    def _path(self, layer):
        try:
            return self.graph.path(layer)
        except UnknownLayer as problem:
            raise ValueError(
                f"{problem} Expected one of "
                f"{', '.join(self.feature_layers)}, or another layer below which all have a rule."
            ) from problem

    def _shape(self, layer):
        self._path(layer)
        shape = self.graph.shapes[self.graph.tensors[layer]]
        if len(shape) not in (1, 3):
            raise ValueError(
                f"Layer {layer!r} makes tensors of shape (batch, {', '.join(map(str, shape))}), "
                "which are neither maps nor units."
            )
        return shape

    def _rectified_layers(self):
        rectified = {
            step.result for step in self.graph.steps
            if step.result in self.graph.shapes
            and step.primitive.rule == "rectification"
            and len(self.graph.shapes[step.result]) == 3
        }  # fmt: skip
        return tuple(layer for layer, tensor in self.graph.tensors.items() if tensor in rectified)


class _Windows:
    """What single units of a layer see of every tensor on the way, all windows being of one size.

    Args:
        graph: A `Graph`.
        steps: A path of it that fits windows.
    """

    def __init__(self, graph, steps):
        self._graph, self._steps = graph, steps
        # Where the windows of units 0 and 1 lie says it of all units.
        self._ranges = [
            graph.ranges(steps, np.arange(2), axis, to_the_border=False) for axis in (0, 1)
        ]

    def places(self, tensor, units, parts=((0, None), (0, None))):
        """Rows and columns of a tensor's maps that windows, or parts of them, cover.

        Args:
            tensor: Its number.
            units: `(rows, columns)`, int32 `(count,)` each.
            parts: For rows and for columns, first place within the window and how many.

        Returns:
            int32 `(count, height)` and `(count, width)`.
        """
        covered = []
        for ranges, unit, (start, count) in zip(self._ranges, units, parts, strict=True):
            first, last = ranges[tensor]
            size = int(last[0] - first[0] + 1 - start) if count is None else count
            jump, offset = int(first[1] - first[0]), int(first[0]) + start
            covered.append(unit[:, None] * jump + offset + tf.range(size))
        return covered

    def keep_inside(self, windows, tensor, units):
        """Windows of a tensor's maps, zero outside the maps."""
        inside = ops.inside_maps(*self.places(tensor, units), self._graph.shapes[tensor][:2])
        return tf.where(inside, windows, tf.zeros_like(windows))

    def run(self, seen, units):
        """All tensors that windows of the picture become: `{number: windows}`."""
        tensors = {INPUT: seen}
        for step in self._steps:
            taken = []
            for source in step.sources:
                # Another step may see more of the source than this one.
                parts = [self._needed(step, source, axis) for axis in (0, 1)]
                (top, height), (left, width) = parts
                part = tensors[source][:, top : top + height, left : left + width]
                taken.append(part)
            if step.primitive.run_inside is None:
                tensors[step.result] = step.run(*taken)
            else:
                extent = self._graph.shapes[source][:2]
                inside = ops.inside_maps(*self.places(source, units, parts), extent)
                tensors[step.result] = step.primitive.run_inside(part, inside)
        return tensors

    def _needed(self, step, source, axis):
        """First place within the source's window that a step needs, and how many."""
        low, high = (int(one[0]) for one in self._ranges[axis][step.result])
        extent = self._graph.extent(source, axis)
        first, last = step.primitive.reach[axis].below(low, high, extent)
        return first - int(self._ranges[axis][source][0][0]), last - first + 1


def _as_maps(tensor):
    """A layer's tensor as float32 maps, single units as maps of 1 x 1."""
    tensor = tf.cast(tensor, tf.float32)
    return tensor if tensor.shape.rank == 4 else tensor[:, None, None, :]


def _cut(projections, windows, units):
    """Projections over whole pictures, cut to the windows of their units."""
    places = [
        tf.gather(tf.constant(spans[:, 0], tf.int32), unit)[:, None]
        + tf.range(int(spans[0, 1] - spans[0, 0]))
        for spans, unit in zip(windows, tf.unstack(units[:, :2], axis=1), strict=True)
    ]
    return ops.cut_windows(projections, tf.range(tf.shape(units)[0]), *places)
