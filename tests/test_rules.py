"""What every layer of Keras does to a signal on its way down, against its matrix."""

import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import ROOT

from zfkeras import rules
from zfkeras.mirror import Mirror

SIZE = (7, 9)
layers = keras.layers


class Doubled(keras.layers.Layer):
    def call(self, inputs):
        return 2 * inputs


class Dropout(keras.layers.Layer):
    """A layer of a user's own that only shares a name with one of Keras's."""

    def call(self, inputs):
        return inputs**2


def adapted_normalization():
    layer = layers.Normalization(name="layer")
    layer.adapt(np.random.default_rng(3).normal(2, 3, (5, *SIZE, 3)))
    return layer


def two_branches(merge):
    def build(maps):
        return merge([layers.Conv2D(3, 3, padding="same")(maps), layers.Identity()(maps)])

    return build


# Name -> a function of maps that is linear but for a shift.
LINEAR = {
    "Conv2D": layers.Conv2D(4, 3, strides=2, padding="same"),
    "Conv2D valid": layers.Conv2D(4, (2, 3), dilation_rate=(2, 1)),
    "Conv2D dilated": layers.Conv2D(4, 3, dilation_rate=2, padding="same"),
    "Conv2D groups": layers.Conv2D(6, 3, groups=3, padding="same"),
    "DepthwiseConv2D": layers.DepthwiseConv2D(3, strides=2, padding="same", depth_multiplier=2),
    "SeparableConv2D": layers.SeparableConv2D(4, 3, padding="same"),
    "Conv2DTranspose": layers.Conv2DTranspose(4, 3, strides=2, padding="same"),
    "Conv2DTranspose valid": layers.Conv2DTranspose(2, 2, strides=3),
    "Conv2DTranspose output_padding": layers.Conv2DTranspose(
        2, 3, strides=2, padding="same", output_padding=0
    ),
    "Dense": layers.Dense(4),
    "EinsumDense": layers.EinsumDense("bhwc,cd->bhwd", (None, None, 4), bias_axes="d"),
    "AveragePooling2D": layers.AveragePooling2D(3, 2, padding="same"),
    "AveragePooling2D valid": layers.AveragePooling2D((2, 3)),
    "AdaptiveAveragePooling2D": layers.AdaptiveAveragePooling2D((3, 2)),
    "GlobalAveragePooling2D": layers.GlobalAveragePooling2D(),
    "BatchNormalization": layers.BatchNormalization(),
    "Rescaling": layers.Rescaling(0.3, offset=-1.5),
    "Rescaling channels": layers.Rescaling([0.3, 1.0, -2.0], offset=[1.0, 0.0, 2.0]),
    "Rescaling places": layers.Rescaling(np.linspace(1, 2, 9)[:, None].tolist()),
    "Normalization": adapted_normalization(),
    "ZeroPadding2D": layers.ZeroPadding2D(((1, 0), (2, 3))),
    "Cropping2D": layers.Cropping2D(((1, 2), (0, 3))),
    "UpSampling2D": layers.UpSampling2D((2, 3)),
    "UpSampling2D bilinear": layers.UpSampling2D(2, interpolation="bilinear"),
    "Flatten": layers.Flatten(),
    "Reshape": layers.Reshape((9, 7, 3)),
    "Permute": layers.Permute((2, 1, 3)),
    "Resizing": layers.Resizing(5, 6),
    "CenterCrop": layers.CenterCrop(4, 5),
    "Dropout": layers.Dropout(0.5),
    "SpatialDropout2D": layers.SpatialDropout2D(0.5),
    "GaussianNoise": layers.GaussianNoise(1.0),
    "GaussianDropout": layers.GaussianDropout(0.5),
    "AlphaDropout": layers.AlphaDropout(0.5),
    "Identity": layers.Identity(),
    "ActivityRegularization": layers.ActivityRegularization(l2=0.1),
    "RandomFlip": layers.RandomFlip(),
    "RandomRotation": layers.RandomRotation(0.2),
    "RandomZoom": layers.RandomZoom(0.2),
    "RandomTranslation": layers.RandomTranslation(0.2, 0.2),
    "RandomContrast": layers.RandomContrast(0.2),
    "RandomBrightness": layers.RandomBrightness(0.2),
    "Activation linear": layers.Activation("linear"),
    "Add": two_branches(layers.Add()),
    "Subtract": two_branches(layers.Subtract()),
    "Average": two_branches(layers.Average()),
    "Multiply numbers": lambda maps: layers.Multiply()(
        [maps, tf.reshape(tf.range(189, dtype=tf.float32), (1, *SIZE, 3))]
    ),
    "Concatenate": two_branches(layers.Concatenate()),
    "Concatenate rows": two_branches(layers.Concatenate(axis=1)),
    "+": lambda maps: maps + layers.DepthwiseConv2D(3, padding="same")(maps) + 3,
    "-": lambda maps: 2 - maps,
    "*": lambda maps: 0.5 * maps * np.arange(1, 4, dtype=np.float32),
    "* places": lambda maps: maps * np.arange(1, 10, dtype=np.float32)[:, None],
    "/": lambda maps: maps / 4,
    "negative": lambda maps: -maps,
    "[::-1]": lambda maps: maps[..., ::-1],
    "[1:5]": lambda maps: maps[:, 1:5, ::2],
    "pad": lambda maps: keras.ops.pad(maps, ((0, 0), (1, 2), (0, 1), (0, 0))),
    "pad reflect": lambda maps: keras.ops.pad(maps, ((0, 0), (1, 2), (0, 1), (0, 0)), "reflect"),
    "transpose": lambda maps: keras.ops.transpose(maps, (0, 2, 1, 3)),
    "flip": lambda maps: keras.ops.flip(maps, 2),
    "mean": lambda maps: keras.ops.mean(maps, (1, 2)),
    "sum": lambda maps: keras.ops.sum(maps, 1, keepdims=True),
    "concatenate": lambda maps: keras.ops.concatenate([maps, 2 * maps], axis=-1),
    "matmul": lambda maps: keras.ops.matmul(maps, np.eye(3, 4, 1, dtype=np.float32)),
    "average_pool": lambda maps: keras.ops.average_pool(maps, 2, 1, padding="same"),
    "conv": lambda maps: keras.ops.conv(maps, np.ones((2, 2, 3, 4), np.float32)),
    "a mean that is added": lambda maps: maps + keras.ops.mean(maps, (1, 2), keepdims=True),
}


def model_of(build):
    """Maps that are rectified, then whatever it is, which goes by the name of `layer`."""
    keras.utils.set_random_seed(2)
    inputs = keras.Input((*SIZE, 3))
    if isinstance(build, keras.layers.Layer):
        build = type(build).from_config({**build.get_config()}) if not build.built else build
    maps = build(inputs)
    model = keras.Model(inputs, layers.Identity(name="last")(maps))
    rng = np.random.default_rng(1)
    for variable in model.trainable_variables:
        variable.assign(rng.normal(size=variable.shape))
    return model


@pytest.mark.parametrize("name", LINEAR)
def test_what_is_linear_comes_down_by_its_adjoint(name, monkeypatch):
    model = model_of(LINEAR[name])
    # Nothing is rectified here, which alone would be a reason to refuse.
    monkeypatch.setattr(Mirror, "_rectified_layers", lambda self: ("last",))
    deconvnet = Mirror(model)
    count = int(np.prod(SIZE)) * 3
    basis = np.eye(count, dtype=np.float32).reshape(count, *SIZE, 3)
    nothing = np.zeros((1, *SIZE, 3), np.float32)
    # Keras's random layers are at work unless told that this is not training.
    rows = (model(basis, training=False) - model(nothing, training=False)).numpy()
    matrix = rows.reshape(count, *deconvnet.map_size("last"), -1)

    height, width = deconvnet.map_size("last")
    units = [
        (feature_map, row, column)
        for feature_map in {0, deconvnet.feature_map_count("last") - 1}
        for row in {0, height // 2, height - 1}
        for column in {0, width // 2, width - 1}
    ]
    feature_maps, rows, columns = np.transpose(units)
    pictures = np.random.default_rng(0).normal(size=(len(units), *SIZE, 3))
    found = deconvnet.project_units(pictures, "last", feature_maps, rows, columns, "one")
    for projection, box, (feature_map, row, column) in zip(
        found.projections, found.boxes, units, strict=True
    ):
        expected = matrix[:, row, column, feature_map].reshape(*SIZE, 3)
        np.testing.assert_allclose(projection, expected, atol=1e-5 * np.abs(matrix).max() + 1e-6)
        top, left, bottom, right = box
        outside = expected.copy()
        outside[top:bottom, left:right] = 0
        assert not np.abs(outside).max() > 1e-6


RELU = {
    "argument": layers.Conv2D(4, 3, activation="relu"),
    "function": layers.Conv2D(4, 3, activation=keras.activations.relu),
    "tensorflow": layers.Conv2D(4, 3, activation=tf.nn.relu),
    "keras.ops": layers.Conv2D(4, 3, activation=keras.ops.relu),
    "layer as argument": layers.Conv2D(4, 3, activation=layers.ReLU()),
    "wrapped": layers.Conv2D(4, 3, activation=lambda maps: tf.maximum(maps, 0)),
    "Activation": lambda maps: layers.Activation("relu")(layers.Conv2D(4, 3)(maps)),
    "ReLU": lambda maps: layers.ReLU()(layers.Conv2D(4, 3)(maps)),
    "ReLU capped": lambda maps: layers.ReLU(max_value=1e6)(layers.Conv2D(4, 3)(maps)),
    "relu": lambda maps: keras.ops.relu(layers.Conv2D(4, 3)(maps)),
    "activations.relu": lambda maps: keras.activations.relu(layers.Conv2D(4, 3)(maps)),
    "EinsumDense": layers.EinsumDense(
        "bhwc,cd->bhwd", (None, None, 4), activation="relu", bias_axes="d"
    ),
    "after Dense": layers.Dense(4, activation="relu"),
    "depthwise": layers.DepthwiseConv2D(3, activation="relu"),
    "separable": layers.SeparableConv2D(4, 3, activation="relu"),
    "transposed": layers.Conv2DTranspose(4, 3, activation="relu"),
}


def above(maps, build):
    """Another layer on top, so that the rectifier below sees signals of either sign."""
    return layers.Conv2D(5, 3, activation="relu", name="top")(build(maps))


@pytest.mark.parametrize("name", RELU)
def test_relu_is_recognized_however_it_is_spelled(name, rng):
    """What comes down is rectified: not only where the maps were positive, as a gradient would."""
    model = model_of(lambda maps: above(maps, RELU[name]))
    pictures = rng.normal(size=(2, *SIZE, 3)).astype(np.float32)
    deconvnet = Mirror(model)
    assert len(deconvnet.feature_layers) == 2
    found = deconvnet.project_strongest(pictures, "top", top_k=1, start="one")

    # The same by hand: down from the top, rectified, and down through what is below.
    below, top = deconvnet.feature_layers[0], model.get_layer("top")
    rectified = deconvnet.rectified_maps(tf.constant(pictures), [below])[below]
    assert rectified.numpy().min() == 0
    kernel = top.kernel.numpy()
    for index in range(2):
        signal = np.zeros(rectified.shape[1:], np.float32)
        row, column = found.rows[index], found.columns[index]
        signal[row : row + 3, column : column + 3] = kernel[..., found.feature_maps[index]]
        signal = np.maximum(signal, 0)
        linear = [step for step in deconvnet.graph.path(below) if step.primitive.rule == "adjoint"]
        with tf.GradientTape() as tape:
            inputs = tf.constant(pictures[index : index + 1])
            tape.watch(inputs)
            outputs = deconvnet.graph.run(linear, inputs)[linear[-1].result]
        expected = tape.gradient(outputs, inputs, signal[None])[0]
        np.testing.assert_allclose(found.projections[index], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda maps: tf.nn.relu(maps[:, ::-1]), "which has no rule"),
        (lambda maps: 1.005 * tf.nn.relu(maps), "which has no rule"),
        (tf.nn.crelu, "does not keep the shape of maps"),
    ],
)
def test_what_is_nearly_relu_is_not(function, message):
    model = model_of(lambda maps: layers.Conv2D(4, 3, activation=function, name="one")(maps))
    with pytest.raises(ValueError, match=rf"layer 'one' \(Conv2D\) has .*{message}"):
        Mirror(model)


def test_a_high_cap_is_a_cap(rng):
    model = model_of(lambda maps: layers.ReLU(6000.0, name="a")(maps * 1e4))
    pictures = tf.constant(rng.normal(size=(2, *SIZE, 3)), tf.float32)
    assert Mirror(model).rectified_maps(pictures, ["a"])["a"].numpy().max() == 6000


@pytest.mark.parametrize("layer", [layers.ReLU(6), layers.Activation("relu6")])
def test_a_capped_relu_stays_capped(layer, rng):
    model = model_of(lambda maps: layer(layers.Conv2D(4, 3)(maps)))
    pictures = tf.constant(rng.normal(size=(2, *SIZE, 3)) * 9, tf.float32)
    (name,) = Mirror(model).feature_layers
    maps = Mirror(model).rectified_maps(pictures, [name])[name]
    assert maps.numpy().max() == 6
    np.testing.assert_allclose(maps, model(pictures), atol=1e-5)


@pytest.mark.parametrize(
    "pool",
    [
        layers.MaxPooling2D(3, 2, name="pool"),
        lambda maps: keras.ops.max_pool(maps, 3, 2, padding="same"),
        lambda maps: keras.ops.max_pool(maps, (2, 3)),
    ],
)
def test_max_pooling_puts_the_signal_where_the_maximum_lay(pool, rng):
    model = model_of(lambda maps: pool(layers.Conv2D(2, 1, activation="relu", name="a")(maps)))
    picture = rng.normal(size=(1, *SIZE, 3)).astype(np.float32)
    deconvnet = Mirror(model)
    below = deconvnet.rectified_maps(tf.constant(picture), ["a"])["a"].numpy()[0, ..., 1]
    kernel = model.get_layer("a").kernel.numpy()[0, 0, :, 1]
    for row, column in ((0, 0), (1, 1), (2, 2)):
        found = deconvnet.project_units(picture, "last", 1, row, column)
        places = np.argwhere(np.abs(found.projections[0]).sum(axis=-1))
        if not found.activations[0]:
            assert not len(places)
            continue
        ((top, left),) = places
        assert below[top, left] == found.activations[0]
        np.testing.assert_allclose(
            found.projections[0, top, left], kernel * found.activations[0], rtol=1e-5
        )


@pytest.mark.parametrize("keepdims", [False, True])
def test_a_global_maximum_goes_to_its_first_place(keepdims):
    model = model_of(
        lambda maps: layers.GlobalMaxPooling2D(keepdims=keepdims, name="pool")(
            layers.ReLU(name="relu")(maps)
        )
    )
    picture = np.zeros((1, *SIZE, 3), np.float32)
    picture[0, 2, 3, 1] = picture[0, 5, 5, 1] = 4
    found = Mirror(model).project_units(picture, "pool", 1, 0, 0)
    assert found.activations[0] == 4
    assert np.argwhere(found.projections[0]).tolist() == [[2, 3, 1]]


REFUSED = {
    "Softmax": (lambda maps: layers.Softmax(name="one")(maps), "has no rule in a deconvnet"),
    "LeakyReLU": (lambda maps: layers.LeakyReLU(name="one")(maps), "has no rule"),
    "ReLU": (
        lambda maps: layers.ReLU(negative_slope=0.1, name="one")(maps),
        "has the activation ReLU, which has no rule",
    ),
    "Activation": (
        lambda maps: layers.Activation("gelu", name="one")(maps),
        "has the activation gelu, which has no rule: the paper's is ReLU",
    ),
    "Conv2D": (
        lambda maps: layers.Conv2D(3, 3, activation="softplus", name="one")(maps),
        "has the activation softplus",
    ),
    "Dense": (
        lambda maps: layers.Dense(3, activation=lambda a, b: a, name="one")(maps),
        "has an activation that does not take maps",
    ),
    "Multiply": (
        lambda maps: layers.Multiply(name="one")([maps, layers.Conv2D(3, 1)(maps)]),
        "works on several maps at once, which has no rule",
    ),
    "Maximum": (lambda maps: layers.Maximum(name="one")([maps, 2 * maps]), "has no rule"),
    "Divide": (
        lambda maps: keras.src.ops.numpy.Divide(name="one")(1.0, maps),
        "divides by maps, which is not linear",
    ),
    "LayerNormalization": (lambda maps: layers.LayerNormalization(name="one")(maps), "has no rule"),
    "BatchNormalization": (
        lambda maps: layers.BatchNormalization(axis=1, name="one")(maps),
        "normalizes along other axes",
    ),
    "Lambda": (lambda maps: layers.Lambda(lambda one: one, name="one")(maps), "has no rule"),
    "Doubled": (lambda maps: Doubled(name="one")(maps), "has no rule"),
    "Dropout": (lambda maps: Dropout(name="one")(maps), "has no rule"),
    "Cast": (lambda maps: keras.ops.cast(maps, "int32"), "makes int32 numbers"),
    "Flip": (
        lambda maps: keras.ops.flip(maps, 0),
        "mixes the pictures of a batch or is not linear",
    ),
    "ops.average": (
        lambda maps: keras.ops.average(maps, axis=-1, weights=maps)[..., None] * np.ones(3),
        "has no rule",
    ),
    "Transpose": (
        lambda maps: keras.ops.transpose(keras.ops.transpose(maps, (1, 0, 2, 3)), (1, 0, 2, 3)),
        "mixes the pictures of a batch or is not linear",
    ),
    "Reshape": (
        lambda maps: keras.ops.reshape(maps, (-1, 35, 3, 3)),
        "mixes the pictures of a batch or is not linear",
    ),
    "Mean": (
        lambda maps: maps - keras.ops.mean(maps, 0, keepdims=True),
        "mixes the pictures of a batch or is not linear",
    ),
    "ThresholdedReLU": (
        lambda maps: layers.ReLU(threshold=0.1, name="one")(maps),
        "has the activation ReLU",
    ),
    "Split": (
        lambda maps: keras.src.ops.numpy.Split(3, axis=-1, name="one")(maps)[0],
        "makes several tensors at once",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_has_no_rule_is_refused_by_name_and_all_above_it(kind, rng):
    build, message = REFUSED[kind]

    def between(maps):
        maps = build(layers.Conv2D(3, 3, activation="relu", name="below")(maps))
        maps = keras.ops.cast(maps, "float32") if maps.dtype != "float32" else maps
        return layers.Conv2D(3, 3, activation="relu", name="above")(maps)

    deconvnet = Mirror(model_of(between))
    assert deconvnet.feature_layers == ("below",)
    kind = kind.removeprefix("Thresholded").replace("ops.average", "Average")
    with pytest.raises(ValueError, match=rf"^Layer '\w+' \({kind}\) {re.escape(message)}"):
        deconvnet.project_strongest(np.zeros((1, *SIZE, 3)), "above", 1)
    pictures = rng.normal(size=(1, *SIZE, 3))
    assert np.any(deconvnet.project_strongest(pictures, "below", 1).projections)


def test_a_layer_of_ones_own_may_be_said_to_be_linear(rng):
    model = model_of(
        lambda maps: Doubled(name="one")(layers.Conv2D(3, 3, activation="relu", name="below")(maps))
    )
    pictures = rng.normal(size=(1, *SIZE, 3)).astype(np.float32)
    deconvnet = Mirror(model, linear_layers=(Doubled,))
    below = deconvnet.project_strongest(pictures, "below", 1)
    found = deconvnet.project_units(pictures, "one", below.feature_maps, below.rows, below.columns)
    np.testing.assert_allclose(found.projections, 4 * below.projections, rtol=1e-5)


def test_channels_first_are_refused():
    inputs = keras.Input((3, *SIZE))
    maps = layers.Conv2D(3, 3, activation="relu", data_format="channels_last")(inputs)
    maps = layers.MaxPooling2D(1, data_format="channels_first", name="pool")(maps)
    with pytest.raises(ValueError, match=r"Layer 'pool' \(MaxPooling2D\) has channels first"):
        Mirror(keras.Model(inputs, maps)).map_size("pool")


def test_every_rule_is_in_the_readme():
    readme = (ROOT / "README.md").read_text()
    for rule in set(rules.RULES.values()):
        words = rule.__doc__[0].lower() + rule.__doc__[1:].rstrip(".")
        (row,) = (line for line in readme.splitlines() if line.startswith(f"| {words} |"))
        named = set(re.findall(r"`([\w.]+)`", row))
        assert named == {name for name, other in rules.RULES.items() if other is rule}
