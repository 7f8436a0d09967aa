import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import random_model

from zfkeras.features import Features
from zfkeras.trained import Trained, from_keras


def test_features_are_what_the_layers_make(trained, rng):
    inputs = tf.constant(rng.normal(size=(2, 29, 37, 3)), tf.float32)
    model = trained.model
    features = Features(trained, ["first", "conv2", "last_maps", "last", "logits"])
    assert features.layers == ("conv1", "conv2", "conv3", "fc4", "logits")

    found, probabilities = features.with_probabilities(inputs)

    maps = trained.deconvnet().rectified_maps(inputs, ["conv1", "conv2", "conv3"])
    for layer, values in zip(features.layers[:3], found, strict=False):
        np.testing.assert_allclose(values, maps[layer], rtol=1e-5, atol=1e-5)
    units = keras.Model(model.input, model.get_layer("fc4").output)(inputs)
    np.testing.assert_allclose(found[3], units, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found[4], model(inputs), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(probabilities, tf.nn.softmax(model(inputs)), atol=1e-6)
    for with_them, alone in zip(found, features(inputs), strict=True):
        np.testing.assert_array_equal(with_them, alone)


@pytest.mark.parametrize(
    ("application", "expected"),
    [("MobileNetV2", ("Conv1_relu", "out_relu", "global_average_pooling2d")), ("VGG16", None)],
)
def test_first_and_last_layers_of_any_model(application, expected):
    keras.backend.clear_session()
    options = {"weights": None, "input_shape": (32, 32, 3), "classes": 5}
    if application == "MobileNetV2":
        options["alpha"] = 0.35
    model = getattr(keras.applications, application)(**options)
    features = Features(from_keras(model), ["first", "last_maps", "last"])
    assert features.layers == (expected or ("block1_conv1", "block5_conv3", "fc2"))


def test_a_network_without_hidden_units_ends_with_its_maps(tiny):
    import dataclasses

    bare = random_model(dataclasses.replace(tiny, dense=()))
    trained = Trained(bare, np.zeros((37, 37, 3), np.float32))
    assert Features(trained, ["last_maps", "last"]).layers == ("conv3",)


def test_an_unknown_layer_is_refused_by_name(trained):
    with pytest.raises(ValueError, match="no layer 'conv7'. Expected one of conv1, conv2, conv3"):
        Features(trained, ["conv7"])


def test_without_rectification_layers_with_maps_count():
    inputs = keras.Input((8, 8, 3))
    maps = keras.layers.Conv2D(2, 3, activation="gelu", name="lower")(inputs)
    maps = keras.layers.Conv2D(2, 3, activation="swish", name="upper")(maps)
    outputs = keras.layers.Dense(2)(keras.layers.GlobalAveragePooling2D(name="mean")(maps))
    features = Features(from_keras(keras.Model(inputs, outputs)), ["first", "last_maps", "last"])
    assert features.layers == ("lower", "upper", "mean")


def test_a_layer_that_is_called_as_a_word_is_that_layer():
    inputs = keras.Input((8, 8, 3))
    maps = keras.layers.Conv2D(2, 3, activation="relu", name="last")(inputs)
    maps = keras.layers.Conv2D(2, 3, activation="relu", name="upper")(maps)
    model = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.Flatten()(maps)))
    assert Features(from_keras(model), ["last"]).layers == ("last",)
