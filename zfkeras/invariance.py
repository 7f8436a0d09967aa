"""Invariance: how far features move when a picture is moved, enlarged or turned (Figure 5).

The paper plots the Euclidean distance of a first and a last layer's features from those of the
untouched picture, and the probability of the true class. It does not say in what unit, nor what
comes in from beyond the border; both are to be chosen here.
"""

import csv
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from zfkeras.choices import NORMALIZATIONS
from zfkeras.data.images import border_of, centre_crop, transform
from zfkeras.features import Features
from zfkeras.writing import replacing

# Figure 5's axes: pixels of 224, and what a step is.
SHIFT = 60 / 224
STEPS = 25
SCALES = np.round(np.linspace(1, 1.8, 17), 6)
ANGLES = np.arange(0.0, 351.0, 10.0)


@dataclass(frozen=True)
class Invariance:
    """How pictures fare under transformations.

    Attributes:
        layers: Names of the layers.
        normalization: The unit of the distances, one of `NORMALIZATIONS`.
        labels: int `(pictures,)`, the class whose probability is of interest.
        values: `{transformation: float (steps,)}`, in pixels, times, or degrees.
        distances: `{transformation: float32 (pictures, layers, steps)}`, from the features of the
            untransformed picture. Not a number where all features of one of the two are zero, but
            for the normalization `"none"`.
        probabilities: `{transformation: float32 (pictures, steps)}`, of the class.
    """

    layers: tuple[str, ...]
    normalization: str
    labels: np.ndarray
    values: dict
    distances: dict
    probabilities: dict

    def save(self, path):
        """Writes all arrays into one `.npz` file, `<transformation>_values` and so on."""
        arrays = {
            f"{kind}_{name}": getattr(self, name)[kind]
            for kind in self.values
            for name in ("values", "distances", "probabilities")
        }
        with replacing(path) as beside:
            np.savez_compressed(
                beside,
                layers=self.layers,
                normalization=self.normalization,
                labels=self.labels,
                **arrays,
            )

    def save_table(self, path, picture_names, class_names):
        """Writes a `.csv` file with a line for each picture, transformation and step."""
        with replacing(path) as beside, beside.open("w", newline="") as file:
            table = csv.writer(file)
            distances = [f"distance_{layer}" for layer in self.layers]
            table.writerow(
                ["picture", "class", "transformation", "value", *distances, "probability"]
            )
            for index, (name, label) in enumerate(zip(picture_names, self.labels, strict=True)):
                for kind, values in self.values.items():
                    for step, value in enumerate(values):
                        table.writerow(
                            [
                                name,
                                class_names[label],
                                kind,
                                f"{value:g}",
                                *self.distances[kind][index, :, step].tolist(),
                                self.probabilities[kind][index, step],
                            ]
                        )


def default_values(extent):
    """Figure 5's transformations for pictures of `(height, width)`: `{transformation: values}`."""
    shifts = [np.round(np.linspace(-1, 1, STEPS) * SHIFT * side) for side in extent]
    return {
        "vertical": np.unique(shifts[0]),
        "horizontal": np.unique(shifts[1]),
        "scale": SCALES,
        "rotation": ANGLES,
    }


def feature_distances(features, normalization="relative"):
    """Euclidean distances of a batch's features from those of its first picture.

    Args:
        features: float32 tensor `(batch, ...)`.
        normalization: `"relative"`, in lengths of the first picture's features; `"unit"`, between
            features of length one, so that none exceeds 2, nor 1.41 between rectified ones; or
            `"none"`.

    Returns:
        float32 `(batch - 1,)`.
    """
    features = tf.reshape(features, (tf.shape(features)[0], -1))
    if normalization == "unit":
        features /= tf.norm(features, axis=1, keepdims=True)
    distances = tf.norm(features[1:] - features[:1], axis=1)
    return distances / tf.norm(features[0]) if normalization == "relative" else distances


class InvarianceProbe:
    """Transforms pictures and watches what becomes of features.

    Args:
        trained: A `zfkeras.trained.Trained` network that gives probabilities.
        layers: As in `zfkeras.features.Features`.
        values: `{transformation: values}`, as `zfkeras.data.images.transform` takes them, None for
            those of `default_values`; all of these if it is None itself.
        normalization: As in `feature_distances`.
        border: One of `zfkeras.choices.BORDERS`, or three numbers, red, green and blue. A picture
            goes on for as far as the centre square does that crops are taken from.

    Attributes:
        layers: Their names.
        values: `{transformation: values}`.
        extent: `(height, width)` of a picture.
        count: How many transformed pictures there are to each picture.

    Raises:
        ValueError: If a layer, a transformation, or a choice is unknown.
    """

    def __init__(
        self,
        trained,
        layers=("first", "last"),
        values=None,
        normalization="relative",
        border="mean",
    ):
        if normalization not in NORMALIZATIONS:
            raise ValueError(
                f"`normalization` must be one of {', '.join(NORMALIZATIONS)}. "
                f"Received: normalization={normalization!r}."
            )
        self.names = trained.names
        self._trained, self._border, self.normalization = trained, border, normalization
        self._features = Features(trained, layers)
        self.layers = self._features.layers
        self.extent = self._features.input_shape[:2]
        default = default_values(self.extent)
        values = default if values is None else values
        unknown = [kind for kind in values if kind not in default]
        if unknown or not values:
            raise ValueError(
                f"Expected transformations of {', '.join(default)}. "
                f"Received: {', '.join(unknown) or 'none'}."
            )
        self.values = {
            kind: default[kind] if given is None else np.asarray(given)
            for kind, given in values.items()
        }
        self.count = sum(len(given) for given in self.values.values())
        self._look = tf.function(self._look_at, autograph=False, reduce_retracing=True)

    def transformed(self, square, kind, values):
        """What the network sees of a transformed picture.

        Args:
            square: uint8 `(side, side, 3)`, of `Trained.square`.
            kind: A transformation.
            values: float `(count,)`.

        Returns:
            float32 `(count, height, width, 3)` in 0 to 255.
        """
        border = border_of(self._border, square, self._trained.mean_image)
        return centre_crop(transform(square, kind, values, border), self.extent)

    def __call__(self, squares, labels=None, batch_size=32, on_batch=lambda count: None):
        """Transforms pictures, one after the other.

        Args:
            squares: uint8 arrays `(side, side, 3)`, of `Trained.square`.
            labels: Each picture's class; None, or None for a picture, is the most probable one.
            batch_size: Pictures at a time.
            on_batch: Called with the number of transformed pictures just done.

        Returns:
            `Invariance`.

        Raises:
            ValueError: If the network gives no probabilities.
        """
        labels = [None] * len(squares) if labels is None else labels
        chosen = []
        distances = {
            kind: np.empty((len(squares), len(self.layers), len(values)), np.float32)
            for kind, values in self.values.items()
        }
        probabilities = {
            kind: np.empty((len(squares), len(values)), np.float32)
            for kind, values in self.values.items()
        }
        mean_image = centre_crop(self._trained.mean_image, self.extent)
        for index, (square, label) in enumerate(zip(squares, labels, strict=True)):
            untouched = tf.cast(centre_crop(square, self.extent), tf.float32)[None]
            for kind, values in self.values.items():
                for first in range(0, len(values), batch_size):
                    part = slice(first, first + batch_size)
                    seen = self.transformed(square, kind, values[part])
                    # The picture as it is goes along with every batch, so that what does not
                    # change it has a distance of zero exactly.
                    inputs = tf.concat([untouched, seen], 0) - mean_image
                    found, outputs = self._look(inputs)
                    outputs = outputs.numpy()
                    self._trained.require_probabilities(outputs)
                    if label is None:
                        label = int(outputs[0].argmax())
                    for layer, moved in enumerate(found):
                        distances[kind][index, layer, part] = moved
                    probabilities[kind][index, part] = outputs[1:, label]
                    on_batch(len(outputs) - 1)
            chosen.append(label)
        return Invariance(
            self.layers,
            self.normalization,
            np.array(chosen),
            self.values,
            distances,
            probabilities,
        )

    def _look_at(self, inputs):
        features, probabilities = self._features.with_probabilities(inputs)
        return [feature_distances(one, self.normalization) for one in features], probabilities
