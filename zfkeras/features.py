"""What layers of a trained network make of pictures, in plain forward passes."""

import tensorflow as tf

from zfkeras.graph import Graph


class Features:
    """Features of several layers, and the probabilities if the network gives any.

    Args:
        trained: A `zfkeras.trained.Trained` network.
        layers: Names of layers. `"first"` stands for the first layer that is rectified,
            `"last_maps"` for the last one that is rectified and has maps, and `"last"` for what
            the last layer with weights takes: layers 1, 5 and 7 of the paper's network.

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
        named = {"first": _first, "last_maps": _last_maps, "last": _last}
        chosen = [named[layer](graph) if layer in named else layer for layer in layers]
        for layer in chosen:
            if layer not in graph.tensors:
                raise ValueError(
                    f"There is no layer {layer!r}. Expected one of {', '.join(graph.tensors)}."
                )
        self.layers = tuple(dict.fromkeys(chosen))
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


def _first(graph):
    return _rectified(graph.steps)


def _last_maps(graph):
    steps = [step for step in graph.steps if len(graph.shapes.get(step.result, ())) == 3]
    return _rectified(reversed(steps))


def _rectified(steps):
    for step in steps:
        if step.primitive is not None and step.primitive.rule == "rectification":
            return step.layer
    raise ValueError("The model has no ReLU. Expected the names of layers.")


def _last(graph):
    makers = {step.result: step for step in graph.steps_to(graph.outputs)}
    number, weighted = graph.outputs[0], False
    # What only passes numbers on, as dropout and flattening do, has no features of its own.
    while number in makers:
        step = makers[number]
        if weighted and step.kind not in PASSING:
            return step.layer
        weighted = weighted or step.kind in WEIGHTED
        number = step.sources[0]
    return _last_maps(graph)


WEIGHTED = ("Dense", "Conv2D", "EinsumDense")
PASSING = ("Dropout", "ReplicaDropout", "SpatialDropout2D", "Flatten", "Reshape", "Identity")
