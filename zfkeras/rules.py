"""Which rule takes a signal down through which layer of a Keras model.

A layer is one or more primitives: what is linear in it, say, and a rectification. `RULES` has the
rule of each class of layers and operations; what comes of a signal is of four kinds:

adjoint
    What is linear, a bias or shift aside, comes down by its adjoint: transposed filters,
    transposed weights, a mean spread over what it was the mean of, a batch normalization's scale.
switches
    Max pooling puts the signal back where the maximum lay.
rectification
    The signal itself is rectified, whatever the maps were (section 2.1). A function counts as
    ReLU, capped or not, if it gives what ReLU gives: it may be spelled in any way.
skipped
    Contrast normalization, as in the paper; and what does nothing in inference, such as dropout.

What is not in the table has no rule, and nothing above such a layer can be projected.
"""

import copy
from dataclasses import dataclass

import keras
import numpy as np
import tensorflow as tf

from zfkeras import ops
from zfkeras.architecture import Contrast, Filtering, Pooling, Rectification

SIGNAL_RULES = ("deconvnet", "guided", "gradient")


class NoRule(ValueError):
    """A layer that a signal has no way down through; the message says why."""


@dataclass(frozen=True)
class Sliding:
    """One unit sees `window` units of the map below, its neighbour those `strides` further on.

    Attributes:
        window: How many, dilation included.
        strides: From one unit's window to the next.
        padding: Units before the map that the first window covers, or `"same"`, TensorFlow's rule.
    """

    window: int = 1
    strides: int = 1
    padding: int | str = 0

    def before(self, extent):
        """Units before a map of this extent that the first window covers."""
        if self.padding != "same":
            return self.padding
        needed = (-(-extent // self.strides) - 1) * self.strides + self.window
        return max(needed - extent, 0) // 2

    def below(self, low, high, extent):
        """First and last unit that units `low` to `high` see, as if the map never ended."""
        before = self.before(extent)
        return low * self.strides - before, high * self.strides - before + self.window - 1


@dataclass(frozen=True)
class Spreading:
    """Every unit below is laid down on `window` units, its neighbour's `strides` further on."""

    window: int
    strides: int
    padding: int = 0

    def below(self, low, high, extent):
        """As `Sliding.below`."""
        first = -((self.window - 1 - self.padding - low) // self.strides)
        return first, (high + self.padding) // self.strides


# What tells an activation function: large and small, of either sign. A cap above all of them counts
# as none.
PROBES = (-1e4, -7, -1, -0.5, -(2**-10), 0, 2**-10, 0.25, 0.5, 1, 3, 5.5, 7, 100, 6e4)

HERE = Sliding(), Sliding()
EVERYWHERE = None


@dataclass(frozen=True)
class Primitive:
    """One thing that a layer does to maps; its gradient is how a signal comes down through it.

    Attributes:
        rule: `"adjoint"`, `"switches"`, `"rectification"` or `"skipped"`.
        run: Function of the layer's arguments.
        reach: What one unit sees of the maps below, `Sliding` or `Spreading` along rows and along
            columns; or `EVERYWHERE`.
        run_inside: Function of windows of the maps below, exactly as large as the result needs, and
            a mask of what of them lies inside the maps. None where `run` itself will do, unit
            by unit, or where windows cannot be run at all.
    """

    rule: str
    run: object
    reach: tuple | None = HERE
    run_inside: object = None

    @property
    def fits_windows(self):
        """Whether windows of maps can be run instead of whole maps."""
        if self.reach is EVERYWHERE or not all(isinstance(one, Sliding) for one in self.reach):
            return False
        return self.run_inside is not None or self.reach == HERE


def primitives(operation, arguments, signal_rule="deconvnet", overlap="sum", linear_layers=()):
    """What a layer or an operation of a Keras model does, first things first.

    Args:
        operation: A Keras layer or operation, which is not changed and never called itself.
        arguments: The node's `(args, kwargs)`, with KerasTensors in them.
        signal_rule: One of `SIGNAL_RULES`. `"deconvnet"`, the paper's, rectifies the signal;
            `"gradient"` lets it pass where the maps were rectified (Simonyan et al., 2013);
            `"guided"` does both (Springenberg et al., 2014). In the last two contrast
            normalization comes down by its gradient.
        overlap: Rule for switches shared by overlapping pooling windows, `"sum"` or `"max"`.
        linear_layers: More classes of layers that are linear.

    Raises:
        NoRule: If there is none.
    """
    kind = type(operation)
    if kind in linear_layers:
        return [Primitive("adjoint", twin(operation), EVERYWHERE)]
    # A layer of a user's own may share its name with one of Keras's and do something else.
    known = kind.__module__.split(".")[0] in ("keras", "zfkeras")
    is_layer = isinstance(operation, keras.layers.Layer)
    rule = RULES.get(kind.__name__ if is_layer else f"ops.{kind.__name__}") if known else None
    if rule is None:
        raise NoRule("has no rule in a deconvnet")
    if getattr(operation, "data_format", "channels_last") != "channels_last":
        raise NoRule("has channels first, which TensorFlow cannot run on a CPU")
    return rule(operation, arguments, Descent(signal_rule, overlap))


@dataclass(frozen=True)
class Descent:
    """How signals go down where there is a choice."""

    signal_rule: str
    overlap: str


def twin(layer, **changes):
    """A layer with the weights of another one, and the same in everything but what is given."""
    if not isinstance(layer, keras.layers.Layer):
        return layer
    other = object.__new__(type(layer))
    for name, value in layer.__dict__.items():
        contained = isinstance(value, list | dict | set)
        other.__dict__[name] = copy.copy(value) if contained else value
    # Past Keras's own attribute setter, which would keep books on the layer of the user.
    # A name may hold what the scopes of a TensorFlow graph must not.
    other.__dict__.update({"activity_regularizer": None, "name": "layer", **changes})

    def run(*args, **kwargs):
        if kwargs.get("training"):
            kwargs["training"] = False
        return other(*args, **kwargs)

    return run


def keep_inside(maps, inside, outside=0.0):
    """Maps with everything outside replaced."""
    return tf.where(inside, maps, tf.cast(outside, maps.dtype))


def rectify(signal_rule, cap=None):
    """ReLU, at most `cap`, whose gradient is a rule of `SIGNAL_RULES`."""

    @tf.custom_gradient
    def run(maps):
        rectified = tf.nn.relu(maps)
        passes = maps > 0
        if cap is not None:
            limit = tf.cast(cap, maps.dtype)
            rectified, passes = tf.minimum(rectified, limit), passes & (maps < limit)

        def descend(signal):
            if signal_rule != "gradient":
                signal = tf.nn.relu(signal)
            if signal_rule != "deconvnet":
                signal = tf.where(passes, signal, tf.zeros_like(signal))
            return signal

        return rectified, descend

    return Primitive("rectification", run)


def activation(function, name, descent):
    """The primitives of an activation function, recognized by what it does."""
    # At every place and in every channel the same, whatever stands at the others.
    values = np.random.default_rng(0).permuted(np.tile(PROBES, (2, 5, 7, 1)), axis=-1)
    values = tf.constant(values, tf.float32)
    with tf.init_scope():
        try:
            made = tf.convert_to_tensor(function(values))
        except Exception as error:  # Whatever a user's function may raise on such input.
            raise NoRule("has an activation that does not take maps") from error
    given, values = np.asarray(tf.cast(made, tf.float32)), values.numpy()
    tolerance = 1e-6 if made.dtype == tf.float32 else 1e-2
    if given.shape != values.shape:
        raise NoRule("has an activation that does not keep the shape of maps")
    if np.allclose(given, values, rtol=tolerance, atol=0):
        return []
    cap = given.max()
    if cap > 0 and np.allclose(given, np.clip(values, 0, cap), rtol=tolerance, atol=0):
        capped = cap < (1 - tolerance) * values.max()
        return [rectify(descent.signal_rule, float(cap) if capped else None)]
    raise NoRule(f"has the activation {name}, which has no rule: the paper's is ReLU")


def _activation_layer(layer, arguments, descent):
    """The signal rectified, if it is ReLU in any spelling."""
    _single(arguments)
    name = _name(getattr(layer, "activation", layer))
    return activation(twin(layer), name, descent) or [Primitive("skipped", tf.identity)]


def _with_activation(layer, linear, descent):
    function = getattr(layer, "activation", None)
    if function is None:
        return [linear]
    return [linear, *activation(function, _name(function), descent)]


def _name(function):
    return getattr(function, "__name__", type(function).__name__)


def _single(arguments):
    tensors = _tensors(arguments)
    if len(tensors) != 1:
        raise NoRule("works on several maps at once, which has no rule")


def _tensors(arguments):
    return [one for one in keras.tree.flatten(arguments) if isinstance(one, keras.KerasTensor)]


def _filtering(layer, arguments, descent):
    """The signal filtered with the transposed filters."""
    _single(arguments)
    if layer.padding not in ("same", "valid"):
        raise NoRule(f"pads by the rule {layer.padding!r}, which maps do not have")
    padding = "same" if layer.padding == "same" else 0
    reach = tuple(
        Sliding((size - 1) * dilation + 1, strides, padding)
        for size, strides, dilation in zip(
            _pair(layer.kernel_size),
            _pair(layer.strides),
            _pair(layer.dilation_rate),
            strict=True,
        )
    )
    linear = keras.activations.linear
    whole = twin(layer, activation=linear)
    valid = twin(layer, activation=linear, padding="valid")

    def run_inside(maps, inside):
        return valid(keep_inside(maps, inside))

    return _with_activation(layer, Primitive("adjoint", whole, reach, run_inside), descent)


def _transposed(layer, arguments, descent):
    """The signal filtered with the filters."""
    _single(arguments)
    reach = EVERYWHERE
    if layer.output_padding is None and set(_pair(layer.dilation_rate)) == {1}:
        reach = tuple(
            Spreading(size, step, max(size - step, 0) // 2 if layer.padding == "same" else 0)
            for size, step in zip(_pair(layer.kernel_size), _pair(layer.strides), strict=True)
        )
    run = twin(layer, activation=keras.activations.linear)
    return _with_activation(layer, Primitive("adjoint", run, reach), descent)


def _dense(layer, arguments, descent):
    """The signal times the transposed weights."""
    _single(arguments)
    # On maps, a dense layer filters each place with 1 x 1 filters.
    run = twin(layer, activation=keras.activations.linear)
    return _with_activation(layer, Primitive("adjoint", run), descent)


def _max_pooling(layer, arguments, descent):
    """The signal unpooled to where the switches point."""
    _single(arguments)
    size, strides = _pair(layer.pool_size), _pair(layer.strides or layer.pool_size)
    return [_pool(size, strides, layer.padding, descent.overlap)]


def _pool(size, strides, padding, overlap):
    reach = tuple(
        Sliding(window, step, "same" if padding == "same" else 0)
        for window, step in zip(size, strides, strict=True)
    )

    def run(maps, padding=padding):
        if overlap == "sum":
            return tf.nn.max_pool2d(maps, size, strides, padding.upper())
        return _pool_keeping_largest(maps, size, strides, padding.upper())

    def run_inside(maps, inside):
        return run(keep_inside(maps, inside, maps.dtype.min), "valid")

    return Primitive("switches", run, reach, run_inside)


def _pool_keeping_largest(maps, size, strides, padding):
    @tf.custom_gradient
    def run(maps):
        pooled, switches = tf.nn.max_pool_with_argmax(
            tf.cast(maps, tf.float32), size, strides, padding, output_dtype=tf.int64
        )

        def descend(signal):
            signal = tf.cast(signal, tf.float32)
            # A silent window is no rival: a unit's projection would depend on what it cannot see.
            rivals = tf.where(signal == 0, signal.dtype.min, signal)
            unpooled = ops.max_unpool(rivals, switches, maps.shape[1:3], "max")
            return tf.cast(unpooled, maps.dtype)

        return tf.cast(pooled, maps.dtype), descend

    return run(maps)


def _global_max_pooling(layer, arguments, descent):
    """The signal put where each map's maximum lay."""
    _single(arguments)

    # The gradient of a maximum over axes would share a signal among equal units.
    def run(maps):
        size = maps.shape[1:3]
        pooled = tf.nn.max_pool2d(maps, size, size, "VALID")
        return pooled if layer.keepdims else tf.squeeze(pooled, (1, 2))

    return [Primitive("switches", run, EVERYWHERE)]


def _average_pooling(layer, arguments, descent):
    """The signal spread evenly over each window."""
    _single(arguments)
    size, strides = _pair(layer.pool_size), _pair(layer.strides or layer.pool_size)
    padding = "same" if layer.padding == "same" else 0
    reach = tuple(
        Sliding(window, step, padding) for window, step in zip(size, strides, strict=True)
    )

    def run_inside(maps, inside):
        # What lies outside does not count in the mean.
        count = tf.nn.avg_pool2d(tf.cast(inside, maps.dtype), size, strides, "VALID")
        return tf.nn.avg_pool2d(keep_inside(maps, inside), size, strides, "VALID") / tf.where(
            count > 0, count, tf.ones_like(count)
        )

    return [Primitive("adjoint", twin(layer), reach, run_inside)]


def _zero_padding(layer, arguments, descent):
    """The signal without its border."""
    return [_shift(layer, [before for before, _ in layer.padding])]


def _cropping(layer, arguments, descent):
    """The signal with zeros around it."""
    return [_shift(layer, [-before for before, _ in layer.cropping])]


def _shift(layer, before):
    reach = tuple(Sliding(1, 1, padding) for padding in before)
    return Primitive("adjoint", twin(layer), reach, keep_inside)


def _up_sampling(layer, arguments, descent):
    """Sums of the signal over what was made of each unit."""
    _single(arguments)
    reach = EVERYWHERE
    if layer.interpolation == "nearest":
        reach = tuple(Spreading(factor, factor) for factor in _pair(layer.size))
    elif layer.interpolation == "bilinear":
        reach = tuple(
            Spreading(2 * factor, factor, (factor + 1) // 2) for factor in _pair(layer.size)
        )
    return [Primitive("adjoint", twin(layer), reach)]


def _sum(layer, arguments, descent):
    """The signal, or its negative, to every summand."""
    return [Primitive("adjoint", twin(layer), _reach_beside(arguments))]


def _product(operation, arguments, descent):
    """The signal times the factor, or divided by the divisor, which must be numbers."""
    _single(arguments)
    if type(operation).__name__ != "Multiply" and not _tensors(arguments[0][:1]):
        raise NoRule("divides by maps, which is not linear")
    return [Primitive("adjoint", twin(operation), _reach_beside(arguments))]


def _reach_beside(numbers):
    """`HERE`, unless other places have other numbers, which windows would not find."""
    shapes = (
        np.shape(one)
        for one in keras.tree.flatten(numbers)
        if not isinstance(one, keras.KerasTensor | str | None)
    )
    return HERE if all(set(shape[:-1]) <= {1} for shape in shapes) else EVERYWHERE


def _scaling(layer, arguments, descent):
    """The signal times the scale, of its statistics as they are in inference."""
    _single(arguments)
    axes = np.ravel(getattr(layer, "axis", -1) or -1)
    if not set(axes.tolist()) <= {-1, len(_tensors(arguments)[0].shape) - 1}:
        raise NoRule("normalizes along other axes than the last one, which has no rule")
    numbers = [np.asarray(getattr(layer, name, 0)) for name in ("scale", "offset")]
    return [Primitive("adjoint", twin(layer), _reach_beside(numbers))]


def _mean(layer, arguments, descent):
    """The signal spread over what was summed."""
    return _linear(layer, arguments)


def _rearrangement(layer, arguments, descent):
    """The signal rearranged to where it came from."""
    return _linear(layer, arguments)


def _indexing(operation, arguments, descent):
    """The signal where it was taken from, zeros elsewhere."""
    key = arguments[0][1] if isinstance(arguments[0][1], tuple) else (arguments[0][1],)
    *places, channels = key
    all_places = places in ([Ellipsis], [slice(None)] * 3)
    of_channels = all_places and isinstance(channels, slice)
    return _linear(operation, arguments, HERE if of_channels else EVERYWHERE)


def _matrix(operation, arguments, descent):
    """The signal times the transposed matrix, which must be numbers."""
    first, second = arguments[0]
    mixes_channels = isinstance(first, keras.KerasTensor) and np.ndim(second) == 2
    return _linear(operation, arguments, HERE if mixes_channels else EVERYWHERE)


def _einsum_dense(layer, arguments, descent):
    """The signal times the transposed weights, summed as they were."""
    _single(arguments)
    run = twin(layer, activation=keras.activations.linear)
    return _with_activation(layer, Primitive("adjoint", run, EVERYWHERE), descent)


def _other_linear(layer, arguments, descent):
    """The adjoint."""
    return _linear(layer, arguments)


def _linear(layer, arguments, reach=EVERYWHERE):
    _single(arguments)
    return [Primitive("adjoint", twin(layer), reach)]


def _concatenation(operation, arguments, descent):
    """Each part of the signal to where it came from."""
    rank = len(_tensors(arguments)[0].shape)
    along_maps = operation.axis in (-1, rank - 1)
    return [Primitive("adjoint", twin(operation), HERE if along_maps else EVERYWHERE)]


def _skipped(layer, arguments, descent):
    """The signal as it is: in inference the layer does nothing."""
    _single(arguments)
    return [Primitive("skipped", lambda maps, *args, **kwargs: maps)]


def _contrast(run, descent):
    if descent.signal_rule != "deconvnet":
        return Primitive("adjoint", run)

    @tf.custom_gradient
    def skipped(maps):
        return run(maps), lambda signal: tf.cast(signal, maps.dtype)

    return Primitive("skipped", skipped)


def _contrast_layer(layer, arguments, descent):
    """The signal as it is, as in the paper."""
    return [_contrast(twin(layer), descent)]


def _conv_block(block, arguments, descent):
    """Unpooled, rectified, filtered with the transposed filters."""
    made = []
    for stage in block.stages:
        match stage:
            case Filtering(kernel_size=size, strides=strides, padding=padding):
                reach = (Sliding(size, strides, padding),) * 2
                made.append(
                    Primitive(
                        "adjoint",
                        lambda maps, padding=padding: _filter(block, maps, padding),
                        reach,
                        lambda maps, inside: _filter(block, keep_inside(maps, inside), 0),
                    )
                )
            case Rectification():
                made.append(rectify(descent.signal_rule))
            case Pooling(size=size, strides=strides):
                inside = _pool((size, size), (strides, strides), "valid", descent.overlap)

                def run(maps, pool=inside.run, size=size, strides=strides):
                    covered, padding = ops.cover_border(maps, size, strides)
                    return pool(covered, padding)

                made.append(Primitive("switches", run, inside.reach, inside.run_inside))
            case Contrast():
                made.append(_contrast(twin(block.contrast), descent))
    return made


def _filter(block, maps, padding):
    kernel, bias = (tf.cast(one, block.compute_dtype) for one in (block.kernel, block.bias))
    maps = tf.cast(maps, block.compute_dtype)
    return ops.filter_maps(maps, kernel, bias, block.filtering.strides, padding)


def _pair(value):
    return tuple(value) if isinstance(value, list | tuple) else (value, value)


# Layers by their class in Keras; operations, such as `x + y` or `keras.ops.relu`, by theirs.
_NAMES = {
    _filtering: "Conv2D DepthwiseConv2D SeparableConv2D",
    _transposed: "Conv2DTranspose",
    _dense: "Dense",
    _einsum_dense: "EinsumDense",
    _max_pooling: "MaxPooling2D ops.MaxPool",
    _global_max_pooling: "GlobalMaxPooling2D",
    _average_pooling: "AveragePooling2D",
    _mean: "GlobalAveragePooling2D AdaptiveAveragePooling2D ops.Mean ops.Sum",
    _scaling: "BatchNormalization Rescaling Normalization",
    _activation_layer: "ReLU Activation ops.ReLU ops.Relu ops.Relu6",
    _zero_padding: "ZeroPadding2D",
    _cropping: "Cropping2D",
    _up_sampling: "UpSampling2D",
    _sum: "Add Subtract Average ops.Add ops.Subtract ops.Negative ops.Cast",
    _concatenation: "Concatenate ops.Concatenate",
    _product: "Multiply ops.Multiply ops.Divide ops.TrueDivide",
    _matrix: "ops.Matmul",
    _indexing: "ops.GetItem",
    _rearrangement: "Flatten Reshape Permute RepeatVector CenterCrop ops.Reshape ops.Pad "
    "ops.Transpose ops.Flip ops.Squeeze ops.ExpandDims",
    _other_linear: "Resizing ops.Resize ops.Conv ops.DepthwiseConv ops.SeparableConv "
    "ops.ConvTranspose ops.AveragePool",
    _skipped: "Dropout SpatialDropout2D GaussianDropout GaussianNoise AlphaDropout Identity "
    "ActivityRegularization RandomFlip RandomRotation RandomZoom RandomTranslation RandomContrast "
    "RandomBrightness ReplicaDropout",
    _contrast_layer: "LocalResponseNormalization",
    _conv_block: "ConvBlock",
}
RULES = {name: rule for rule, names in _NAMES.items() for name in names.split()}
