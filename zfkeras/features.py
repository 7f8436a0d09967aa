"""What layers of a trained network make of pictures, in plain forward passes."""

import tensorflow as tf

from zfkeras.graph import Graph

WEIGHTED = ("Dense", "Conv2D", "EinsumDense")
# What only passes numbers on has no features of its own.
PASSING = ("Dropout", "ReplicaDropout", "SpatialDropout2D", "Flatten", "Reshape", "Identity")


class Features:
    """Features of several layers, and the probabilities if the network gives any.

    Args:
        trained: A `zfkeras.trained.Trained` network.
        layers: Names of layers, or what `find_layer` takes for names.

    Attributes:
        layers: Their names, each once.
        input_shape: `(height, width, channels)` of a picture.

    Raises:
        ValueError: If there is no such layer; the message lists what there is.
    """

    def __init__(self, trained, layers):
        self._trained = trained
        self._graph = graph = Graph(trained.model, trained.input_size, front=trained.front)
        self.input_shape = graph.input_shape
        self.layers = tuple(dict.fromkeys(find_layer(graph, layer) for layer in layers))
        self._tensors = [graph.tensors[layer] for layer in self.layers]
        self._steps = graph.steps_to([*self._tensors, graph.outputs[0]])
        self._steps_to_layers = graph.steps_to(self._tensors)

    def __call__(self, inputs):
        """Features of pictures, to be called within a `tf.function`.

        Args:
            inputs: float32 `(batch, height, width, channels)` as the network takes it.

        Returns:
            List of float32 tensors, one for each of `layers`, batch first. Maps are rectified, and
            not pooled or normalized yet.
        """
        return self._read(self._graph.run(self._steps_to_layers, inputs))

    def with_probabilities(self, inputs):
        """As a call, and the probabilities, float32 `(batch, classes)`."""
        tensors = self._graph.run(self._steps, inputs)
        outputs = tf.cast(tensors[self._graph.outputs[0]], tf.float32)
        return self._read(tensors), self._trained.probabilities(outputs)

    def _read(self, tensors):
        return [tf.cast(tensors[number], tf.float32) for number in self._tensors]


def find_layer(graph, layer):
    """The name of a layer.

    Args:
        graph: A `zfkeras.graph.Graph`.
        layer: The name of one; or `"first"`, the first that is rectified, `"last_maps"`, the last
            that is rectified and has maps, or `"last"`, what the last layer with weights takes:
            layers 1, 5 and 7 of the paper's network. Where nothing is rectified, the first and the
            last that have maps.

    Raises:
        ValueError: If there is none; the message lists what there is.
    """
    found = layer
    if layer not in graph.tensors:
        found = {"first": _first, "last_maps": _last_maps, "last": _last}.get(layer)
        found = found and found(graph)
    if found is None:
        raise ValueError(
            f"There is no layer {layer!r}. Expected one of {', '.join(graph.tensors)}."
        )
    return found


def _first(graph):
    rectified = _rectified(graph)
    return rectified[0] if rectified else next(iter(_with_maps(graph)), None)


def _last_maps(graph):
    rectified = _rectified(graph, maps=True)
    return next(reversed(rectified or _with_maps(graph)), None)


def _rectified(graph, maps=False):
    """Layers that are rectified, or only those of them that have maps, lowest first."""
    return [
        step.layer
        for step in graph.steps
        if _rectifies(step) and (not maps or len(graph.shapes.get(step.result, ())) == 3)
    ]


def _rectifies(step):
    return step.primitive is not None and step.primitive.rule == "rectification"


def _with_maps(graph):
    """Layers that have maps, whatever is done to them, lowest first."""
    steps = graph.steps_to(graph.outputs)
    shapes = graph.find_shapes(steps)
    return [step.layer for step in steps if len(shapes[step.result]) == 3]


def _last(graph):
    makers = {step.result: step for step in graph.steps_to(graph.outputs)}
    number, weighted = graph.outputs[0], False
    while number in makers:
        step = makers[number]
        if weighted and step.kind not in PASSING:
            return step.layer
        weighted = weighted or step.kind in WEIGHTED
        number = step.sources[0]
    return _last_maps(graph)
