import keras
import numpy as np
import pytest
import tensorflow as tf

from zfkeras import mirror
from zfkeras.architecture import Filtering, Rectification
from zfkeras.deconvnet import Deconvnet
from zfkeras.layers import ConvBlock
from zfkeras.mirror import Mirror
from zfkeras.trained import from_keras

SIZE = (31, 37)
applications = keras.applications


def randomize(model, seed=1):
    """Weights and statistics large enough that every layer has something to say."""
    rng = np.random.default_rng(seed)
    for variable in model.weights:
        if "variance" in variable.path:
            variable.assign(rng.uniform(0.5, 2, variable.shape))
        elif "seed" not in variable.path:
            fan_in = int(np.prod(variable.shape[:-1])) if len(variable.shape) > 1 else 4
            variable.assign(rng.normal(size=variable.shape) * np.sqrt(2 / fan_in))
    return model


def differentiable(model, rectifiers):
    """The model over again, its rectifiers replaced, for Keras itself to run."""

    def clone(layer):
        if isinstance(layer, keras.layers.ReLU):
            return keras.layers.Activation(rectifiers[layer.max_value], name=layer.name)
        other = type(layer).from_config(layer.get_config())
        if getattr(layer, "activation", None) is keras.activations.relu:
            other.activation = rectifiers[None]
        return other

    other = keras.models.clone_model(model, clone_function=clone)
    other.set_weights(model.get_weights())
    return other


def rectifiers_whose_gradient(signal_rule):
    def make(function, cap):
        @tf.custom_gradient
        def rectify(maps):
            def gradient(signal):
                passes = tf.cast((maps > 0) & (maps < cap), tf.float32)
                if signal_rule == "deconvnet":
                    return tf.maximum(signal, 0)
                if signal_rule == "guided":
                    return tf.maximum(signal, 0) * passes
                return signal * passes

            return function(maps), gradient

        return rectify

    return {None: make(tf.nn.relu, np.inf), 6: make(tf.nn.relu6, 6)}


def derive(model, pictures, found):
    """The gradients of single units times their activations, by Keras and TensorFlow alone."""
    below = keras.Model(model.input, model.get_layer(found.layer).output)
    projections = []
    for picture, feature_map, row, column in zip(
        found.pictures, found.feature_maps, found.rows, found.columns, strict=True
    ):
        inputs = tf.constant(pictures[picture][None])
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            unit = below(inputs)[0, row, column, feature_map]
        projections.append(tape.gradient(unit, inputs)[0] * unit)
    return np.stack(projections)


def assert_equal_to(expected, found):
    limit = 1e-4 * np.abs(expected).max()
    assert limit > 0
    np.testing.assert_allclose(found, expected, atol=limit, rtol=0)


@pytest.mark.parametrize(
    ("application", "size"),
    [
        (applications.VGG16, 64),
        (applications.ResNet50, 96),
        (applications.MobileNetV2, 96),
        (applications.InceptionV3, 107),
        (applications.DenseNet121, 64),
    ],
)
def test_applications_equal_their_derivative_with_another_rectifier(application, size, rng):
    """At sizes that are quick; their layers are the same at any size."""
    keras.utils.set_random_seed(1)
    model = application(weights=None, include_top=False, input_shape=(size, size + 16, 3))
    replaced = differentiable(model, rectifiers_whose_gradient("deconvnet"))
    pictures = rng.normal(size=(2, size, size + 16, 3)).astype(np.float32)
    deconvnet = Mirror(model)

    layers = deconvnet.feature_layers
    for layer in (layers[len(layers) // 2], layers[-1]):
        found = deconvnet.project_strongest(pictures, layer, top_k=2)
        assert_equal_to(derive(replaced, pictures, found), found.projections)


@pytest.fixture
def branching():
    """Odd sides, branches, every kind of padding, a nested model and preprocessing."""
    keras.utils.set_random_seed(1)
    layers = keras.layers
    inner = keras.Sequential(
        [
            keras.Input((None, None, 6)),
            layers.DepthwiseConv2D(3, padding="same", activation="relu", name="depthwise"),
            layers.BatchNormalization(name="normalization"),
            layers.SeparableConv2D(6, 3, padding="same", dilation_rate=2, name="separable"),
        ],
        name="inner",
    )
    inputs = keras.Input((*SIZE, 3))
    maps = layers.Rescaling(1 / 3, offset=-0.1)(inputs)
    maps = layers.ZeroPadding2D(((2, 1), (0, 3)))(maps)
    maps = layers.Conv2D(6, 3, strides=(1, 2), activation="relu", name="first")(maps)
    left = layers.AveragePooling2D(3, 1, padding="same")(maps)
    right = layers.Conv2D(6, (1, 5), padding="same", name="wide")(inner(maps))
    maps = layers.ReLU(max_value=6, name="joined")(layers.Add()([left, right, maps]))
    other = layers.Cropping2D(1)(layers.MaxPooling2D(2, 1, padding="same")(maps))
    other = layers.Conv2D(4, 2, groups=2, padding="same", name="cropped")(other)
    padded = layers.ZeroPadding2D(1)(other)
    maps = layers.Dropout(0.5)(layers.Concatenate()([maps, padded]))
    maps = layers.Dense(5, activation="relu", name="mixed")(maps)
    maps = layers.Conv2D(4, 3, strides=2, padding="same", activation="relu", name="last")(maps)
    maps = layers.Conv2DTranspose(3, 3, strides=2, padding="same", name="grown")(maps)
    maps = layers.Activation("relu", name="rectified")(layers.UpSampling2D(2)(maps))
    units = layers.Dense(7, activation="relu", name="units")(layers.Flatten()(maps))
    outputs = layers.Dense(3, activation="softmax", name="classes")(units)
    return randomize(keras.Model(inputs, outputs))


@pytest.mark.parametrize(
    ("signal_rule", "overlap"),
    [("deconvnet", "sum"), ("deconvnet", "max"), ("guided", "sum"), ("gradient", "max")],
)
def test_windows_give_what_whole_pictures_give(branching, rng, monkeypatch, signal_rule, overlap):
    pictures = rng.normal(size=(2, *SIZE, 3)).astype(np.float32)
    for layer in ("first", "depthwise", "wide", "joined", "cropped", "mixed", "last"):
        found = {}
        for largest in (1.0, -1.0):
            monkeypatch.setattr(mirror, "LARGEST_WINDOW", largest)
            deconvnet = Mirror(branching, signal_rule=signal_rule, overlap=overlap)
            assert deconvnet.graph.fits_windows(deconvnet.graph.path(layer))
            assert np.all(np.less(deconvnet.window_size(layer), SIZE))
            height, width = deconvnet.map_size(layer)
            # At corners and edges, and of every map: one that does not fire may be silent.
            found[largest] = [
                deconvnet.project_units(pictures, layer, feature_map, row, column, "one")
                for feature_map in range(4)
                for row, column in ((0, 0), (height - 1, width - 1), (0, width // 2), (3, 4))
            ]
        for name in ("activations", "projections", "boxes"):
            windowed, whole = (
                np.stack([getattr(one, name) for one in found[largest]]) for largest in (1.0, -1.0)
            )
            assert_equal_to(whole, windowed)


@pytest.mark.parametrize("layer", ["first", "depthwise", "wide", "cropped", "last", "grown"])
def test_boxes_are_what_units_really_see(branching, layer):
    # Weights and pictures of one sign: nothing cancels, no maximum hides the others.
    for variable in branching.weights:
        if "seed" not in variable.path:
            variable.assign(np.full(variable.shape, 0.1))
    model = keras.models.clone_model(
        branching,
        clone_function=lambda one: (
            keras.layers.AveragePooling2D(2, 1, padding="same", name=one.name)
            if isinstance(one, keras.layers.MaxPooling2D)
            else type(one).from_config(one.get_config())
        ),
    )
    model.set_weights(branching.get_weights())
    deconvnet = Mirror(model)
    pictures = np.ones((1, *SIZE, 3), np.float32)
    height, width = deconvnet.map_size(layer)
    for row in (0, 1, 2, height // 2, height - 1):
        for column in (0, 1, width // 2, width - 2, width - 1):
            found = deconvnet.project_units(pictures, layer, 0, row, column, "one")
            rows, columns = np.nonzero(np.abs(found.projections[0]).sum(axis=-1))
            seen = rows.min(), columns.min(), rows.max() + 1, columns.max() + 1
            np.testing.assert_array_equal(found.boxes[0], seen)


@pytest.mark.parametrize("overlap", ["sum", "max"])
def test_a_network_of_blocks_gives_what_its_own_deconvnet_gives(tiny, tiny_model, rng, overlap):
    pictures = rng.normal(size=(3, *tiny.input_size, 3)).astype(np.float32)
    own, other = Deconvnet(tiny_model, overlap), Mirror(tiny_model, overlap=overlap)

    assert other.feature_map_counts() == own.feature_map_counts()
    for layer in own.feature_layers:
        expected = own.project_strongest(pictures, layer, top_k=3)
        found = other.project_strongest(pictures, layer, top_k=3)
        for name in ("feature_maps", "rows", "columns", "boxes", "windows"):
            np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
        assert_equal_to(expected.projections, found.projections)


@pytest.mark.parametrize("signal_rule", ["deconvnet", "guided", "gradient"])
def test_every_signal_rule_is_its_own(rng, signal_rule):
    keras.utils.set_random_seed(1)
    layers = keras.layers
    inputs = keras.Input((*SIZE, 3))
    maps = layers.Conv2D(8, 3, activation="relu", name="first")(inputs)
    maps = layers.Conv2D(8, 3, name="second")(maps)
    maps = layers.ReLU(6, name="rectified")(maps)
    model = randomize(keras.Model(inputs, layers.Conv2D(8, 3, activation="relu", name="a")(maps)))
    pictures = rng.normal(size=(2, *SIZE, 3)).astype(np.float32) * 3

    found = Mirror(model, signal_rule=signal_rule).project_strongest(pictures, "a", top_k=2)

    for other in ("deconvnet", "guided", "gradient"):
        expected = derive(differentiable(model, rectifiers_whose_gradient(other)), pictures, found)
        if other == signal_rule:
            assert_equal_to(expected, found.projections)
        else:
            assert np.abs(expected - found.projections).max() > 0.05 * np.abs(expected).max()


def test_the_users_model_is_not_changed(branching, rng):
    def everything(layer):
        described = {}
        for name, value in vars(layer).items():
            described[name] = id(value)
            if isinstance(value, list | dict | set):
                described[name] = id(value), len(value)
        return described

    def of_all(model):
        layers = [model, *model._flatten_layers(include_self=False)]
        return [everything(layer) for layer in layers]

    pictures = rng.normal(size=(2, *SIZE, 3)).astype(np.float32)
    before, weights = of_all(branching), branching.get_weights()
    outputs = branching(pictures).numpy()
    before = of_all(branching)

    Mirror(branching).project_strongest(pictures, "units", top_k=2)
    Mirror(branching).rectified_maps(tf.constant(pictures), ["first", "rectified"])

    assert of_all(branching) == before
    for own, previous in zip(branching.get_weights(), weights, strict=True):
        np.testing.assert_array_equal(own, previous)
    np.testing.assert_array_equal(branching(pictures), outputs)


def test_weights_that_change_change_the_projection(branching, rng):
    pictures = rng.normal(size=(1, *SIZE, 3)).astype(np.float32)
    deconvnet = Mirror(branching)
    first = deconvnet.project_strongest(pictures, "last", top_k=1).projections
    randomize(branching, seed=5)
    changed = deconvnet.project_strongest(pictures, "last", top_k=1).projections

    fresh = Mirror(branching).project_strongest(pictures, "last", top_k=1).projections
    np.testing.assert_array_equal(changed, fresh)
    assert np.abs(changed - first).max() > 0


def test_maps_are_those_that_the_model_makes(branching, rng):
    pictures = tf.constant(rng.normal(size=(2, *SIZE, 3)), tf.float32)
    found = Mirror(branching).rectified_maps(pictures, ["joined", "units"])

    for layer, maps in found.items():
        own = keras.Model(branching.input, branching.get_layer(layer).output)(pictures)
        np.testing.assert_allclose(maps, np.reshape(own, maps.shape), rtol=1e-5, atol=1e-5)
    assert found["units"].shape == (2, 1, 1, 7)


def test_layers_of_nested_models_and_shared_ones_have_names_of_their_own():
    layers = keras.layers
    shared = layers.Conv2D(3, 3, padding="same", activation="relu", name="conv")
    inner_input = keras.Input((None, None, 3))
    inner_maps = layers.Conv2D(3, 3, activation="relu", name="conv")(inner_input)
    inner = keras.Model(
        inner_input, layers.Conv2D(4, 1, activation="relu", name="deep")(inner_maps), name="inner"
    )
    inputs = keras.Input((*SIZE, 3))
    model = keras.Model(inputs, inner(shared(shared(inputs))))

    assert Mirror(model).feature_layers == ("conv", "conv#2", "inner/conv", "deep")


def test_a_model_that_leaves_its_size_open_needs_one(rng):
    model = keras.Sequential(
        [keras.Input((None, None, 3)), keras.layers.Conv2D(4, 3, activation="relu", name="conv")]
    )
    with pytest.raises(ValueError, match="leaves the size of its pictures open.*input_size"):
        Mirror(model)
    deconvnet = Mirror(model, input_size=(9, 11))
    pictures = rng.normal(size=(1, 9, 11, 3))
    assert deconvnet.project_strongest(pictures, "conv", 1).projections.shape == (1, 9, 11, 3)


def test_half_precision_models_are_mirrored(rng):
    keras.utils.set_random_seed(1)
    inputs = keras.Input((*SIZE, 3))
    maps = keras.layers.Conv2D(8, 3, activation="relu", name="first")(inputs)
    maps = keras.layers.MaxPooling2D()(maps)
    model = keras.Model(inputs, keras.layers.Conv2D(4, 3, activation="relu", name="a")(maps))
    half = keras.models.clone_model(
        model,
        clone_function=lambda layer: type(layer).from_config(
            {**layer.get_config(), "dtype": "mixed_bfloat16"}
        ),
    )
    half.set_weights(model.get_weights())
    assert half.get_layer("a").compute_dtype == "bfloat16"
    pictures = rng.normal(size=(2, *SIZE, 3)).astype(np.float32)

    whole = Mirror(model).project_units(pictures, "a", 1, 2, 3, "one")
    rounded = Mirror(half).project_units(pictures, "a", 1, 2, 3, "one")
    # bfloat16 keeps 8 bits, and a switch may point elsewhere where two units round to one value.
    difference = np.abs(whole.projections - rounded.projections)
    assert np.median(difference[whole.projections != 0]) < 0.02 * np.abs(whole.projections).max()


def test_branches_of_unequal_stride_that_meet_take_whole_pictures(rng):
    layers = keras.layers
    inputs = keras.Input((32, 32, 3))
    context = layers.AveragePooling2D(2)(inputs)
    fovea = layers.Cropping2D(8)(inputs)
    maps = layers.Concatenate()([context, fovea])
    model = randomize(keras.Model(inputs, layers.Conv2D(4, 1, activation="relu", name="a")(maps)))
    pictures = rng.normal(size=(2, 32, 32, 3)).astype(np.float32)
    replaced = differentiable(model, rectifiers_whose_gradient("deconvnet"))
    found = Mirror(model).project_strongest(pictures, "a", top_k=2)
    assert_equal_to(derive(replaced, pictures, found), found.projections)
    maps = model(pictures).numpy()
    np.testing.assert_allclose(
        found.activations,
        maps[found.pictures, found.rows, found.columns, found.feature_maps],
        rtol=1e-5,
    )
    np.testing.assert_allclose(
        found.activations.reshape(2, 2)[:, 0], maps.max((1, 2, 3)), rtol=1e-5
    )


def test_blocks_of_the_paper_among_other_layers_are_mirrored(tiny, rng):
    """A `Deconvnet` alone would not see what comes between its blocks."""
    block = ConvBlock((Filtering(4, 3, 1, 1), Rectification()), name="block")
    inputs = keras.Input((*SIZE, 3))
    maps = keras.layers.Rescaling(1 / 255)(inputs)
    model = randomize(keras.Model(inputs, block(maps)))
    pictures = rng.uniform(0, 255, (1, *SIZE, 3)).astype(np.float32)

    deconvnet = from_keras(model).deconvnet()
    assert isinstance(deconvnet, Mirror)
    found = deconvnet.project_strongest(pictures, "block", 1)
    np.testing.assert_allclose(found.activations[0], model(pictures).numpy().max(), rtol=1e-5)
    with pytest.raises(ValueError, match=r"zfkeras.mirror takes other models.*\(Rescaling\)"):
        Deconvnet(model)


@pytest.mark.parametrize("preprocessing", ["unit", "tf", "torch", "caffe"])
@pytest.mark.parametrize("channels", [1, 3])
def test_preprocessing_leaves_windows_as_they_are(preprocessing, channels, rng):
    inputs = keras.Input((32, 32, channels))
    model = keras.Model(inputs, keras.layers.Conv2D(4, 3, activation="relu", name="a")(inputs))
    if channels == 1 and preprocessing in ("torch", "caffe"):
        with pytest.raises(ValueError, match=f"takes grey pictures, of which '{preprocessing}'"):
            from_keras(model, preprocessing)
        return
    deconvnet = from_keras(model, preprocessing).deconvnet()

    assert deconvnet.window_size("a") == (3, 3)
    assert deconvnet.graph.fits_windows(deconvnet.graph.path("a"))
    pictures = rng.uniform(0, 255, (2, 32, 32, 3)).astype(np.float32)
    assert deconvnet.project_strongest(pictures, "a", 1).projections.any()


def test_inputs_by_other_names_are_refused():
    layers = keras.layers
    a, b = keras.Input((8, 8, 3), name="a"), keras.Input((8, 8, 3), name="b")
    inner = keras.Model([b, a], layers.Subtract()([a, b]), name="inner")
    inputs = keras.Input((8, 8, 3))
    first = layers.Conv2D(3, 1, activation="relu", name="first")(inputs)
    maps = inner({"a": first, "b": layers.Conv2D(3, 1)(inputs)})
    model = keras.Model(inputs, layers.ReLU(name="above")(maps))
    with pytest.raises(ValueError, match=r"Layer 'inner' \(Functional\) takes its inputs by other"):
        Mirror(model).map_size("above")


class OwnCall(keras.Sequential):
    def call(self, inputs, training=None, mask=None):
        return 2 * super().call(inputs, training=training, mask=mask)


def test_a_model_with_a_call_of_its_own_is_refused():
    inner = OwnCall(
        [keras.Input((9, 9, 3)), keras.layers.Conv2D(3, 1, activation="relu")], name="inner"
    )
    with pytest.raises(ValueError, match="Expected a Functional or Sequential Keras model"):
        Mirror(inner)
    inputs = keras.Input((9, 9, 3))
    maps = inner(keras.layers.Conv2D(3, 1, activation="relu", name="first")(inputs))
    model = keras.Model(inputs, keras.layers.ReLU(name="above")(maps))
    with pytest.raises(ValueError, match=r"Layer 'inner' \(OwnCall\) has a `call` of its own"):
        Mirror(model).map_size("above")


class Subclassed(keras.Model):
    def call(self, inputs):
        return inputs


def sequential(*layers, size=SIZE):
    return keras.Sequential([keras.Input((*size, 3)), *layers])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (Subclassed, "Expected a Functional or Sequential Keras model.*Received: Subclassed"),
        (
            lambda: keras.Sequential([keras.layers.Conv2D(3, 3)], name="raw"),
            "Model 'raw' does not know the size of its pictures yet",
        ),
        (
            lambda: keras.Sequential([keras.Input((5,)), keras.layers.Dense(3)], name="flat"),
            r"Expected a model of one picture.*Received: model 'flat' of \(None, 5\)",
        ),
        (
            lambda: sequential(keras.layers.Flatten(), keras.layers.Dense(3, activation="relu")),
            "has no layer of rectified maps that can be projected. Expected convolutions and ReLU",
        ),
        (
            lambda: sequential(keras.layers.Conv2D(3, 3, activation="swish", name="soft")),
            r"can be projected: layer 'soft' \(Conv2D\) has the activation silu",
        ),
    ],
)
def test_models_that_cannot_be_mirrored_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        Mirror(build())


def test_layers_that_are_not_there_are_refused_and_those_that_are_named(branching):
    deconvnet = Mirror(branching)
    with pytest.raises(ValueError, match="There is no layer 'conv9'. Expected one of first"):
        deconvnet.map_size("conv9")
    with pytest.raises(ValueError, match=r"Layer 'classes' \(Dense\) has the activation softmax"):
        deconvnet.feature_map_count("classes")
    with pytest.raises(ValueError, match="takes pictures of 31 x 37 pixels"):
        Mirror(branching, input_size=(19, 19))
    with pytest.raises(ValueError, match="`signal_rule` must be one of deconvnet, guided"):
        Mirror(branching, signal_rule="saliency")
    with pytest.raises(ValueError, match="`overlap` must be one of"):
        Mirror(branching, overlap="mean")
