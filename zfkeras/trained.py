"""Trained networks, wherever they come from: a training run, an exported model, a Keras file."""

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from zfkeras import export
from zfkeras.choices import PREPROCESSINGS
from zfkeras.data import images
from zfkeras.deconvnet import Deconvnet
from zfkeras.export import ModelError
from zfkeras.fingerprint import fingerprint
from zfkeras.graph import input_shape
from zfkeras.mirror import Mirror
from zfkeras.models import ZFNet
from zfkeras.training.run import CONFIG, load_run

# Luma of red, green and blue, for networks that see grey (ITU-R BT.601).
LUMA = (0.299, 0.587, 0.114)
# What keras.applications calls by these names: scale and offset of each channel of 0 to 255.
SCALES = {
    "unit": (1 / 255, 0.0),
    "tf": (1 / 127.5, -1.0),
    "torch": (
        [1 / (255 * deviation) for deviation in (0.229, 0.224, 0.225)],
        [-mean / d for mean, d in zip((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), strict=True)],
    ),
    "caffe": (1.0, [-103.939, -116.779, -123.68]),
}


@dataclass(frozen=True)
class Trained:
    """A trained network.

    Attributes:
        model: The Keras model.
        mean_image: float32 `(side, side, 3)`, to be subtracted from pictures of 0 to 255; zeros if
            the model does without.
        class_names: Name of each class; none if they are not known.
        preprocessing: What its pictures go through next, one of `PREPROCESSINGS`.
        front: Keras model that does so, or None.
        input_size: `(height, width)` of the model's pictures.
    """

    model: keras.Model
    mean_image: np.ndarray
    class_names: tuple[str, ...] = ()
    preprocessing: str = "none"
    front: keras.Model | None = None
    input_size: tuple[int, int] | None = None

    def deconvnet(self):
        """The network's deconvnet by the paper's rules, the fastest one that fits it."""
        if isinstance(self.model, ZFNet):
            return Deconvnet(self.model)
        return Mirror(self.model, self.input_size, front=self.front)

    def fingerprint(self):
        """Of everything that decides what the model makes of inputs, but for its name."""
        config = {**self.model.get_config(), "name": None}
        described = json.dumps(config, sort_keys=True, default=str)
        return fingerprint([described.encode(), *self.model.get_weights(), self.mean_image])

    def prepare(self, picture, size):
        """What the network sees of a picture, and that as its inputs.

        Args:
            picture: uint8 `(height, width, 3)` of any size.
            size: `(height, width)` of the inputs.

        Returns:
            uint8 `(*size, 3)` and float32 `(1, *size, 3)`.
        """
        square = self.square(picture)
        inputs = images.centre_crop(images.subtract_mean(square[None], self.mean_image), size)
        return images.centre_crop(square, size), inputs.numpy()

    def square(self, picture):
        """A picture's centre square at the size that crops are taken from, uint8."""
        return images.centre_square(tf.constant(picture), len(self.mean_image)).numpy()

    @property
    def names(self):
        """Name of each class, or its number as text where the names are not known.

        Raises:
            ValueError: If the model does not tell classes apart.
        """
        if len(self.model.outputs) != 1 or len(self.model.output_shape) != 2:
            raise ValueError(
                f"Model {self.model.name!r} gives no probabilities of classes. "
                f"Received: outputs of shape {self.model.output_shape}."
            )
        if self.model.output_shape[-1] is None:
            raise ValueError(f"Model {self.model.name!r} leaves the number of its classes open.")
        return self.class_names or tuple(map(str, range(self.model.output_shape[-1])))

    def probabilities(self, outputs):
        """What the model's outputs, float32 `(batch, classes)`, say of each class."""
        # Other models end with a softmax of their own.
        return tf.nn.softmax(outputs) if isinstance(self.model, ZFNet) else outputs

    def require_probabilities(self, values):
        """Raises ValueError unless what `probabilities` gave, an array, are probabilities."""
        # Half precision adds up to within a percent.
        if not (values.min() >= 0 and np.abs(values.sum(axis=-1) - 1).max() <= 0.02):
            raise ValueError(
                f"Model {self.model.name!r} gives no probabilities. Expected a softmax at its end."
            )

    def classify(self, inputs):
        """The most probable class of one picture, `inputs` of `prepare`, and its probability."""
        probabilities = self.probabilities(self.model(inputs, training=False)[0]).numpy()
        best = int(probabilities.argmax())
        return self.class_names[best], float(probabilities[best])


def load(path, preprocessing="none", input_size=None):
    """The network in a run's work directory, in an exported model or in a `.keras` file.

    Args:
        path: A work directory, what `zfkeras.export.load` takes, or a `.keras` file, which is
            loaded in Keras's safe mode: none of its code is run.
        preprocessing, input_size: As in `from_keras`, for a `.keras` file only.

    Raises:
        ModelError: If there is no such thing, or a `.keras` file does not load.
        TrainingError: If it is a run that has no weights yet, or a damaged one.
    """
    path = Path(path)
    if path.suffix == ".keras" or path.is_file():
        return from_keras(_load_file(path), preprocessing, input_size)
    if preprocessing != "none" or input_size is not None:
        raise ModelError(
            f"{path} has its preprocessing and its size with it; only those of .keras files can "
            "be chosen."
        )
    if (path / CONFIG).exists():
        run = load_run(path)
        return Trained(run.model, run.mean_image, run.class_names)
    exported = export.load(path)
    return Trained(*exported.restore(), exported.class_names)


def from_keras(model, preprocessing="none", input_size=None):
    """A Keras model made to take pictures of red, green and blue from 0 to 255.

    Projections of it lie in that space, however the model itself wants its pictures.

    Args:
        model: A Functional or Sequential Keras model of one picture. It is not changed.
        preprocessing: What the model was trained with: `"none"`, 0 to 255 as it is; `"unit"`, 0 to
            1; or `"tf"` (-1 to 1), `"torch"` (ImageNet's mean and deviation) or `"caffe"` (blue,
            green, red, minus ImageNet's mean), as keras.applications calls them.
        input_size: `(height, width)`, needed if the model leaves it open.

    Returns:
        `Trained`, its pictures' shorter side being the longer one of the model's input.

    Raises:
        ValueError: If the model does not take one picture of one or three channels.
    """
    if preprocessing not in PREPROCESSINGS:
        raise ValueError(
            f"`preprocessing` must be one of {', '.join(PREPROCESSINGS)}. "
            f"Received: preprocessing={preprocessing!r}."
        )
    *size, channels = input_shape(model, input_size)
    if channels not in (1, 3):
        raise ValueError(
            f"Model {model.name!r} takes pictures of {channels} channels. Expected 1 or 3."
        )
    if channels == 1 and preprocessing in ("torch", "caffe"):
        raise ValueError(
            f"Model {model.name!r} takes grey pictures, of which {preprocessing!r} knows nothing. "
            "Expected preprocessing none, unit or tf."
        )
    side = max(size)
    return Trained(
        model,
        np.zeros((side, side, 3), np.float32),
        preprocessing=preprocessing,
        front=_front(size, channels, preprocessing),
        input_size=tuple(size),
    )


def _front(size, channels, preprocessing):
    inputs = keras.Input((*size, 3))
    maps = inputs
    if channels == 1:
        maps = keras.ops.matmul(maps, np.array(LUMA, np.float32)[:, None])
    if preprocessing == "caffe":
        maps = maps[..., ::-1]
    if preprocessing != "none":
        maps = keras.layers.Rescaling(*SCALES[preprocessing], name="preprocessing")(maps)
    return None if maps is inputs else keras.Model(inputs, maps, name="front")


def _load_file(path):
    if not path.is_file():
        raise ModelError(f"There is no file {path}. Expected a .keras file.")
    if not zipfile.is_zipfile(path):
        raise ModelError(f"{path} is not a .keras file.")
    try:
        return keras.saving.load_model(path, compile=False, safe_mode=True)
    except Exception as error:
        # A file can be wrong in as many ways as there are layers.
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"{path} does not load in Keras's safe mode: {reason}") from error
