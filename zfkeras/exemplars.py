"""Exemplars: the units of a data set that excite a feature map most (section 4, Figure 2).

One plain forward pass per picture. Of every feature map the strongest units so far are kept, so
memory does not grow with the data set. Units are ordered by activation, the strongest first; equal
ones by the number of their picture, then in reading order. That order is total, so neither the
batch size nor how pictures are shared among devices and workers changes the result.
"""

import dataclasses
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

# What is known of every exemplar.
ARRAYS = ("pictures", "rows", "columns", "activations")


@dataclass(frozen=True)
class Exemplars:
    """A layer's strongest units, one line per feature map, the strongest first.

    Attributes:
        layer: Name of the layer.
        pictures: int64 `(maps, top_k)`, number of each unit's picture; -1 where no other unit has
            fired.
        rows, columns: int32 `(maps, top_k)`, position of each unit in its feature map.
        activations: float32 `(maps, top_k)`, positive; 0 where no other unit has fired.
    """

    layer: str
    pictures: np.ndarray
    rows: np.ndarray
    columns: np.ndarray
    activations: np.ndarray

    @classmethod
    def none(cls, layer, maps, top_k):
        """No exemplars yet."""
        return cls(
            layer,
            np.full((maps, top_k), -1, np.int64),
            *(np.zeros((maps, top_k), kind) for kind in (np.int32, np.int32, np.float32)),
        )

    def with_units(self, feature_maps, pictures, rows, columns, activations):
        """These exemplars, or stronger ones among other units.

        Args:
            feature_maps, pictures, rows, columns, activations: Arrays `(count,)`, no unit among
                them that is here already.
        """
        maps, top_k = self.pictures.shape
        units = {
            "feature_maps": np.repeat(np.arange(maps), top_k),
            **{name: getattr(self, name).ravel() for name in ARRAYS},
        }
        others = feature_maps, pictures, rows, columns, activations
        units = {
            name: np.concatenate([own, np.asarray(other, own.dtype)])
            for (name, own), other in zip(units.items(), others, strict=True)
        }
        # A place that nobody has taken yet comes after every unit that has fired.
        order = np.lexsort(
            (
                units["columns"],
                units["rows"],
                units["pictures"],
                -units["activations"],
                units["feature_maps"],
            )
        )
        sorted_maps = units["feature_maps"][order]
        rank = np.arange(len(order)) - np.searchsorted(sorted_maps, sorted_maps)
        chosen = order[rank < top_k]
        return dataclasses.replace(
            self, **{name: units[name][chosen].reshape(maps, top_k) for name in ARRAYS}
        )

    def merged(self, other):
        """The strongest of these and another's, found among other pictures."""
        feature_maps, places = np.nonzero(other.pictures >= 0)
        found = (getattr(other, name)[feature_maps, places] for name in ARRAYS)
        return self.with_units(feature_maps, *found)


class Scan:
    """A search for exemplars under way.

    Args:
        deconvnet: A `zfkeras.projections.Projector`, whose model is run.
        layers: Names of the layers to watch; all of them if None.
        top_k: How many exemplars to keep of each feature map.
        repeats: How many of them may be units of one picture.
        strategy: `tf.distribute.Strategy` whose devices share each batch; the current one if None.

    Attributes:
        exemplars: `{layer: Exemplars}`, of the pictures seen so far.

    Raises:
        ValueError: If a layer is unknown or a number is not positive.
    """

    def __init__(self, deconvnet, layers=None, top_k=9, repeats=1, strategy=None):
        if top_k < 1 or repeats < 1:
            raise ValueError(
                "`top_k` and `repeats` must be positive. "
                f"Received: top_k={top_k}, repeats={repeats}."
            )
        self.strategy = strategy or tf.distribute.get_strategy()
        layers = deconvnet.feature_layers if layers is None else tuple(layers)
        counts = {layer: deconvnet.feature_map_count(layer) for layer in layers}
        self.exemplars = {layer: Exemplars.none(layer, counts[layer], top_k) for layer in layers}

        def find(inputs, numbers, weakest):
            """Per layer the units `(map, picture, row, column)` worth a look, and their values."""
            maps = deconvnet.rectified_maps(inputs, layers)
            return {
                layer: _candidates(maps[layer], numbers, weakest[layer], top_k, repeats)
                for layer in layers
            }

        @tf.function(autograph=False, reduce_retracing=True)
        def step(inputs, numbers, weakest):
            return self.strategy.run(find, (inputs, numbers, weakest))

        self._step = step

    def update(self, inputs, numbers):
        """Looks at more pictures.

        Args:
            inputs: float32 `(batch, height, width, 3)` as the model takes it, or such a batch
                distributed over the devices of the strategy.
            numbers: int64 `(batch,)`, the number of each picture, distributed like the inputs. No
                picture may come twice; those below 0 are passed over.
        """
        weakest = {
            layer: tf.constant(found.activations[:, -1]) for layer, found in self.exemplars.items()
        }
        found = self._step(inputs, numbers, weakest)
        for layer, (units, activations) in found.items():
            parts = zip(
                self.strategy.experimental_local_results(units),
                self.strategy.experimental_local_results(activations),
                strict=True,
            )
            for part, values in parts:
                feature_maps, pictures, rows, columns = part.numpy().T
                self.exemplars[layer] = self.exemplars[layer].with_units(
                    feature_maps, pictures, rows, columns, values.numpy()
                )


def _candidates(maps, numbers, weakest, top_k, repeats):
    """Units of pictures that may be among the exemplars.

    Args:
        maps: float32 `(batch, height, width, channels)`.
        numbers: int64 `(batch,)`.
        weakest: float32 `(channels,)`, the weakest exemplar so far.
        top_k: How many exemplars there are of each map.
        repeats: How many of them may be units of one picture.

    Returns:
        int64 `(count, 4)`: feature map, number of the picture, row, column; float32 `(count,)`.
    """
    height, width, channels = maps.shape[1:]
    # What does not fire is nobody's exemplar, and padding fires nowhere.
    strongest = tf.where(numbers[:, None] >= 0, tf.reduce_max(maps, axis=(1, 2)), 0.0)
    best = tf.math.top_k(tf.transpose(strongest), tf.minimum(top_k, tf.shape(maps)[0])).values
    # A full batch rules out most of its own pictures, which bounds what follows.
    enough = tf.shape(maps)[0] >= top_k
    weakest = tf.where(enough, tf.maximum(weakest, best[:, -1]), weakest)
    # An equal one may belong to an earlier picture.
    chosen = tf.where((strongest >= weakest) & (strongest > 0))
    # Only of these maps is it asked where: fewer and fewer as the scan goes on.
    places = (
        chosen[:, :1] * (height * width) + tf.range(height * width, dtype=tf.int64)
    ) * channels
    values = tf.gather(tf.reshape(maps, (-1,)), places + chosen[:, 1:])
    values, positions = tf.math.top_k(values, min(repeats, height * width))
    positions = tf.cast(positions, tf.int64)
    fires = tf.where(values > 0)
    owner, feature_map = tf.unstack(tf.gather(chosen, fires[:, 0]), axis=1)
    position = tf.gather_nd(positions, fires)
    units = tf.stack(
        [feature_map, tf.gather(numbers, owner), position // width, position % width], axis=1
    )
    return units, tf.gather_nd(values, fires)
