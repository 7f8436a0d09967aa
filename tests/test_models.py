import keras
import numpy as np
import pytest
from conftest import random_model

from zfkeras.architecture import ZFNET_SMALL
from zfkeras.models import ZFNet


def test_the_papers_initialization_is_normal_with_a_hundredth(tiny):
    keras.utils.set_random_seed(0)
    model = ZFNet(ZFNET_SMALL, 10)

    kernel = model.get_layer("conv3").kernel.numpy()
    assert kernel.std() == pytest.approx(0.01, rel=0.02)
    assert np.abs(model.get_layer("fc6").bias).max() == 0


def test_he_initialization_keeps_the_first_layer_at_a_hundredth():
    keras.utils.set_random_seed(0)
    model = ZFNet(ZFNET_SMALL, 10, initialization="he")

    assert model.get_layer("conv1").kernel.numpy().std() == pytest.approx(0.01, rel=0.05)
    expected = np.sqrt(2 / (3 * 3 * 192))
    assert model.get_layer("conv4").kernel.numpy().std() == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_a_network_survives_saving(tmp_path, rng, tiny, dtype):
    model = random_model(tiny, dtype=dtype)

    model.save(tmp_path / "network.keras")
    revived = keras.saving.load_model(tmp_path / "network.keras")

    assert revived.architecture == tiny
    for batch in (1, 5):
        inputs = rng.normal(size=(batch, *tiny.input_size, 3))
        logits = model(inputs)
        assert logits.dtype == "float32"
        np.testing.assert_array_equal(revived(inputs), logits)


def test_a_picture_gets_the_same_logits_in_every_batch(rng, tiny_model, tiny):
    inputs = rng.normal(size=(7, *tiny.input_size, 3))

    np.testing.assert_allclose(tiny_model(inputs[2:3])[0], tiny_model(inputs)[2], atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 0}, "`num_classes` must be positive"),
        ({"num_classes": 2, "initialization": "zeros"}, "one of paper, he.*'zeros'"),
    ],
)
def test_what_cannot_be_built_is_refused(tiny, options, message):
    with pytest.raises(ValueError, match=message):
        ZFNet(tiny, **options)
