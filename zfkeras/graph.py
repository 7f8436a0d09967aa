"""A Keras model as a list of primitive steps, nested models unfolded, and what its units see.

Each step makes one tensor from others. A tensor of maps is `(batch, height, width, channels)`; one
of `(batch, units)` counts as maps of 1 x 1.
"""

import dataclasses
from dataclasses import dataclass

import keras
import numpy as np
import tensorflow as tf
from keras.src.models.functional import Functional

from zfkeras.rules import EVERYWHERE, HERE, NoRule, Primitive, primitives, twin

INPUT = 0


class UnknownLayer(ValueError):
    """A layer that is not there or has no rule; the message names it."""


@dataclass(frozen=True)
class Step:
    """One primitive at work.

    Attributes:
        layer: Name of the layer that it is part of.
        kind: The layer's class.
        sources: Numbers of the tensors that it takes.
        result: Number of the tensor that it makes.
        primitive: What it does; None if it has no rule.
        run: Function of the sources' tensors, or of windows of them where windows fit.
        problem: Why it has no rule; None if it has one.
    """

    layer: str
    kind: str
    sources: tuple[int, ...]
    result: int
    primitive: Primitive | None
    run: object
    problem: str | None = None


class Graph:
    """The steps of a model from its picture on.

    Args:
        model: A Functional or Sequential Keras model of one picture; never changed.
        input_size: `(height, width)` of the picture, needed if the model leaves it open.
        signal_rule, overlap, linear_layers: As in `zfkeras.rules.primitives`.
        front: Another such model, whose result is the model's picture: preprocessing.

    Attributes:
        input_shape: `(height, width, channels)`.
        steps: `Step`s in an order in which they can be run.
        tensors: `{layer: number of its tensor}`. A layer of a nested model goes by its own name
            where that is free, else by `model/layer`; a second use of a layer by `layer#2`. A
            `ConvBlock`'s tensor is that of its rectified maps.
        shapes: `{number: shape of the tensor without its batch}`, of those that have a rule, as
            have all below them.
        outputs: Numbers of the tensors that the model gives.

    Raises:
        ValueError: If the model is not made of layers, or does not take one picture.
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
        self._rules = {
            "signal_rule": signal_rule,
            "overlap": overlap,
            "linear_layers": tuple(linear_layers),
        }
        self.steps, self.tensors, self._made = [], {}, 0
        self.input_shape, made = input_shape(model, input_size), [INPUT]
        if front is not None:
            self.input_shape, made = input_shape(front), self._unfold(_function(front), made, "")
        self.outputs = self._unfold(_function(model), made, "")
        self.shapes = self.find_shapes(self._runnable())
        self.steps = [self._checked(step) for step in self.steps]
        sound = {INPUT, *(step.result for step in self._runnable())}
        self.shapes = {number: self.shapes[number] for number in sound}

    def path(self, layer):
        """The steps from the picture to a layer's tensor, in order.

        Raises:
            UnknownLayer: If there is no such layer or one on the way has no rule.
        """
        if layer not in self.tensors:
            raise UnknownLayer(f"There is no layer {layer!r}.")
        steps = self.steps_to([self.tensors[layer]])
        for step in reversed(steps):
            if step.problem:
                raise UnknownLayer(f"Layer {step.layer!r} ({step.kind}) {step.problem}.")
        return steps

    def steps_to(self, tensors):
        """The steps that lead from the picture to tensors, with a rule or without, in order."""
        wanted, steps = set(tensors), []
        for step in reversed(self.steps):
            if step.result in wanted:
                wanted.update(step.sources)
                steps.append(step)
        return steps[::-1]

    def union_of_paths(self, layers):
        """The steps that lead to any of several layers."""
        wanted = {step.result for layer in layers for step in self.path(layer)}
        return [step for step in self.steps if step.result in wanted]

    def run(self, steps, inputs):
        """All tensors that steps make of inputs: `{number: tensor}`."""
        tensors = {INPUT: inputs}
        for step in steps:
            tensors[step.result] = step.run(*(tensors[source] for source in step.sources))
        return tensors

    def extent(self, tensor, axis):
        """Height (axis 0) or width (axis 1) of a tensor's maps."""
        shape = self.shapes[tensor]
        return shape[axis] if len(shape) == 3 else 1

    def ranges(self, steps, units, axis, to_the_border):
        """First and last unit of every tensor that units of the last step's see, along an axis.

        Args:
            steps: What `path` gave.
            units: int array, rows or columns.
            axis: 0 for rows, 1 for columns.
            to_the_border: Whether every map ends where it ends. Else it goes on without end, but
                for a step that sees all of it.

        Returns:
            `{number: (first, last)}`, int arrays shaped like `units`.
        """
        ranges = {steps[-1].result if steps else INPUT: (units, units)}
        for step in reversed(steps):
            low, high = ranges[step.result]
            for source in step.sources:
                extent = self.extent(source, axis)
                if self.sees_everything(step, source):
                    first, last = np.zeros_like(low), np.full_like(high, extent - 1)
                else:
                    first, last = step.primitive.reach[axis].below(low, high, extent)
                    if to_the_border:
                        first, last = np.clip(first, 0, extent - 1), np.clip(last, 0, extent - 1)
                if source in ranges:
                    others = ranges[source]
                    first, last = np.minimum(first, others[0]), np.maximum(last, others[1])
                ranges[source] = first, last
        return ranges

    def fits_windows(self, steps):
        """Whether windows of maps can be run instead of whole maps.

        All units of a tensor must have windows of one size, one as far from the next as any other:
        branches of unequal stride that meet again do not.
        """
        if not all(
            step.primitive.fits_windows
            and not any(self.sees_everything(step, source) for source in step.sources)
            for step in steps
        ):
            return False
        units = np.arange(4)
        for axis in (0, 1):
            ranges = self.ranges(steps, units, axis, to_the_border=False)
            for step in steps:
                low, high = ranges[step.result]
                for source in step.sources:
                    extent = self.extent(source, axis)
                    taken = step.primitive.reach[axis].below(low, high, extent)
                    first, last = ranges[source]
                    # Where in the source's window a step's part of it lies, and how large both are.
                    for fixed in (taken[0] - first, taken[1] - taken[0], last - first):
                        if np.ptp(fixed):
                            return False
                    if np.ptp(np.diff(first)):
                        return False
        return True

    def sees_everything(self, step, source):
        """Whether a unit of what a step makes sees all of one of its sources."""
        if step.primitive.reach is EVERYWHERE or len(self.shapes[source]) != 3:
            return True
        # What a smaller map has for one place can be broadcast to every place.
        broadcast = self.shapes[source][:2] != self.shapes[step.result][:2]
        return broadcast and step.primitive.reach == HERE and step.primitive.run_inside is None

    def _unfold(self, function, numbers, prefix):
        """Adds a function's steps; gives the numbers of its outputs."""
        made = {id(one): number for one, number in zip(function.inputs, numbers, strict=True)}
        depths = sorted(function._nodes_by_depth, reverse=True)
        for node in (node for depth in depths for node in function._nodes_by_depth[depth]):
            if node.is_input or any(id(one) not in made for one in node.input_tensors):
                continue
            operation = node.operation
            sources = tuple(made[id(one)] for one in node.input_tensors)
            if not isinstance(operation, keras.Model):
                results = self._add(node, sources, prefix)
            elif (problem := _why_not_followed(operation, node)) is not None:
                results = self._refuse(node, sources, prefix, problem)
            else:
                results = self._unfold(_function(operation), sources, f"{prefix}{operation.name}/")
            made.update(
                (id(one), number) for one, number in zip(node.outputs, results, strict=True)
            )
        return [made[id(one)] for one in function.outputs]

    def _add(self, node, sources, prefix):
        """Adds a layer's steps; gives the numbers of what it makes."""
        arguments = (node.arguments.args, node.arguments.kwargs)
        try:
            if len(node.outputs) != 1:
                raise NoRule("makes several tensors at once, which has no rule")
            if "float" not in node.outputs[0].dtype:
                raise NoRule(f"makes {node.outputs[0].dtype} numbers, which is not linear")
            parts = primitives(node.operation, arguments, **self._rules)
        except NoRule as problem:
            return self._refuse(node, sources, prefix, str(problem))
        name, kind = self._free_name(node.operation.name, prefix), type(node.operation).__name__
        rectified = None
        for index, part in enumerate(parts):
            run = _filled(part.run, node) if index == 0 else part.run
            result = self._new()
            self.steps.append(Step(name, kind, sources, result, part, run))
            sources = (result,)
            if part.rule == "rectification":
                rectified = result
        self.tensors[name] = sources[0] if rectified is None else rectified
        return list(sources)

    def _refuse(self, node, sources, prefix, problem):
        name, kind = self._free_name(node.operation.name, prefix), type(node.operation).__name__
        run = _filled(_runner(node.operation), node)
        results = [self._new() for _ in node.outputs]
        self.steps += [
            Step(name, kind, sources, result, None, _one_of(run, index), problem)
            for index, result in enumerate(results)
        ]
        self.tensors[name] = results[0]
        return results

    def _free_name(self, name, prefix):
        names = [name, prefix + name]
        names += (f"{prefix}{name}#{count}" for count in range(2, len(self.steps) + 3))
        return next(name for name in names if name not in self.tensors)

    def _new(self):
        self._made += 1
        return self._made

    def _runnable(self):
        """The steps that have a rule, as have all before them."""
        runnable, known = [], {INPUT}
        for step in self.steps:
            if not step.problem and known.issuperset(step.sources):
                known.add(step.result)
                runnable.append(step)
        return runnable

    def find_shapes(self, steps):
        """Runs steps without numbers, to learn how large everything is.

        Returns:
            `{number: shape without the batch}`, of what steps without a rule make, too.
        """
        shapes = {}

        def trace(inputs):
            for number, tensor in self.run(steps, inputs).items():
                shapes[number] = tuple(tensor.shape[1:])

        spec = tf.TensorSpec((None, *self.input_shape), tf.float32)
        tf.function(trace, (spec,), autograph=False).get_concrete_function()
        return shapes

    def _checked(self, step):
        """A step, refused if it mixes the pictures of a batch or is not linear after all.

        What sees everything may do anything with it: a reshaping that takes in the batch, say.
        """
        if step.result not in self.shapes or step.primitive.rule != "adjoint":
            return step
        if step.primitive.reach is not EVERYWHERE:
            return step
        problem = "mixes the pictures of a batch or is not linear"
        if any(None in self.shapes[tensor] for tensor in (*step.sources, step.result)):
            return dataclasses.replace(step, problem=problem)
        rng, sources = np.random.default_rng(0), []
        for source in step.sources:
            one = rng.normal(size=self.shapes[source])
            sources.append(tf.constant(np.stack([0 * one, one, 2 * one, 3 * one]), tf.float32))
        try:
            made = np.asarray(step.run(*sources), np.float32)
            first = np.asarray(step.run(*(source[:2] for source in sources)), np.float32)
        except (ValueError, tf.errors.OpError):
            return dataclasses.replace(step, problem=problem)
        if made.shape != (4, *self.shapes[step.result]) or first.shape[0] != 2:
            return dataclasses.replace(step, problem=problem)
        # A bias may be much larger than what it is added to, and half precision keeps 8 bits.
        shifted = made - made[:1]
        limit = 1e-2 * np.abs(shifted).max() + 1e-5 * np.abs(made).max()
        expected = np.arange(4).reshape(4, *[1] * (made.ndim - 1)) * shifted[1]
        alike = np.allclose(shifted, expected, atol=limit) and np.allclose(
            first, made[:2], atol=limit
        )
        return step if alike else dataclasses.replace(step, problem=problem)


def _filled(run, node):
    """A primitive as a function of the node's tensors alone, its other arguments being what they
    were when the model was built."""
    arguments = node.arguments

    def filled(*tensors):
        args, kwargs = arguments.fill_in(
            {id(one): tensor for one, tensor in zip(node.input_tensors, tensors, strict=True)}
        )
        return run(*args, **kwargs)

    return filled


def _runner(operation):
    return operation if isinstance(operation, keras.Model) else twin(operation)


def _one_of(run, index):
    """What is in one place of a function's result, which may be a structure."""
    return lambda *tensors: keras.tree.flatten(run(*tensors))[index]


def _why_not_followed(model, node):
    """Why a model among the layers of another one cannot be unfolded; None if it can."""
    if type(model).call not in (Functional.call, keras.Sequential.call):
        return "has a `call` of its own, whose layers cannot be followed"
    given, built = node.arguments.args[0], _function(model)._inputs_struct
    alike = isinstance(given, dict) == isinstance(built, dict)
    if len(node.input_tensors) > 1 and not alike:
        return "takes its inputs by other names than it was built with"
    return None


def _function(model):
    """The Keras function that a model is."""
    if not isinstance(model, keras.Model) or type(model).call not in (
        Functional.call,
        keras.Sequential.call,
    ):
        raise ValueError(
            f"Expected a Functional or Sequential Keras model, whose layers can be followed. "
            f"Received: {type(model).__name__}."
        )
    if isinstance(model, Functional):
        return model
    if model._functional is None:
        raise ValueError(
            f"Model {model.name!r} does not know the size of its pictures yet. "
            "Expected one that starts with keras.Input or has been called."
        )
    return model._functional


def input_shape(model, input_size=None):
    """`(height, width, channels)` of a model's pictures.

    Args:
        model, input_size: As in `Graph`.

    Raises:
        ValueError: If the model does not take one picture, or the size fits badly or is not known.
    """
    function = _function(model)
    if len(function.inputs) != 1 or len(function.inputs[0].shape) != 4:
        shapes = ", ".join(str(tuple(one.shape)) for one in function.inputs)
        raise ValueError(
            f"Expected a model of one picture, (batch, height, width, channels). "
            f"Received: model {model.name!r} of {shapes}."
        )
    *size, channels = function.inputs[0].shape[1:]
    if input_size is not None:
        if any(own not in (None, given) for own, given in zip(size, input_size, strict=True)):
            raise ValueError(
                f"Model {model.name!r} takes pictures of {size[0]} x {size[1]} pixels. "
                f"Received: input_size={tuple(input_size)}."
            )
        size = input_size
    if None in (*size, channels):
        raise ValueError(
            f"Model {model.name!r} leaves the size of its pictures open. "
            "Expected `input_size`, the height and width to look at."
        )
    return (*size, channels)
