"""Keras models built from an architecture."""

import keras

from zfkeras.architecture import Architecture
from zfkeras.choices import INITIALIZATIONS
from zfkeras.constraints import FilterRMS
from zfkeras.layers import ConvBlock, ReplicaDropout


@keras.saving.register_keras_serializable(package="zfkeras")
class ZFNet(keras.Model):
    """A network of convolutional blocks, fully connected layers and a classifier.

    Layers carry the paper's names: `conv1` to `conv5` (blocks, pooling and contrast normalization
    included), `fc6`, `fc7`, `logits`. A block's `emit_switches` gives the maps inside it.

    Args:
        architecture: A `zfkeras.architecture.Architecture`, or its JSON text.
        num_classes: Number of classes.
        initialization: `"paper"` draws every weight from N(0, 0.01), biases 0. `"he"` scales each
            layer's weights by what it receives (He et al., 2015), which a small training set
            needs; the first layer, whose inputs span +-128 and not +-1, and the classifier keep
            N(0, 0.01).
        filter_rms: Largest RMS of a convolutional filter, or None for no limit.

    Call arguments:
        inputs: Float tensor `(batch, height, width, 3)`, mean subtracted, in about +-128.

    Returns:
        Logits, float32 `(batch, num_classes)`.

    Reference:
        Zeiler & Fergus (2014), section 3 and Figure 3.
    """

    def __init__(self, architecture, num_classes, initialization="paper", filter_rms=0.1, **kwargs):
        if isinstance(architecture, str):
            architecture = Architecture.from_json(architecture)
        if num_classes < 1:
            raise ValueError(f"`num_classes` must be positive. Received: {num_classes}.")
        if initialization not in INITIALIZATIONS:
            raise ValueError(
                f"`initialization` must be one of {', '.join(INITIALIZATIONS)}. "
                f"Received: initialization={initialization!r}."
            )
        dtype = kwargs.pop("dtype", None)

        def initializer(layer):
            if initialization == "he" and layer not in (architecture.blocks[0].name, "logits"):
                return keras.initializers.HeNormal()
            return keras.initializers.RandomNormal(stddev=0.01)

        # === Functional Model ===
        inputs = keras.Input((*architecture.input_size, 3), name="inputs")
        maps = inputs
        for block in architecture.blocks:
            maps = ConvBlock(
                block.stages,
                kernel_initializer=initializer(block.name),
                kernel_constraint=filter_rms and FilterRMS(filter_rms),
                dtype=dtype,
                name=block.name,
            )(maps)
        units = keras.layers.Flatten(name="flatten", dtype=dtype)(maps)
        for layer in architecture.dense:
            units = keras.layers.Dense(
                layer.units,
                activation="relu",
                kernel_initializer=initializer(layer.name),
                dtype=dtype,
                name=layer.name,
            )(units)
            units = ReplicaDropout(layer.dropout, dtype=dtype, name=f"{layer.name}_dropout")(units)
        # In half precision the softmax of a thousand classes loses what tells them apart.
        logits = keras.layers.Dense(
            num_classes, kernel_initializer=initializer("logits"), dtype="float32", name="logits"
        )(units)
        super().__init__(inputs=inputs, outputs=logits, **kwargs)

        # === Config ===
        self.architecture = architecture
        self.num_classes = num_classes
        self.initialization = initialization
        self.filter_rms = filter_rms
        self.layer_dtype = dtype

    @property
    def feature_layers(self):
        """Names of the layers that have feature maps, lowest first."""
        return tuple(block.name for block in self.architecture.blocks)

    def get_config(self):
        dtype = self.layer_dtype
        if isinstance(dtype, keras.DTypePolicy):
            dtype = dtype.name
        return {
            "name": self.name,
            "architecture": self.architecture.to_json(),
            "num_classes": self.num_classes,
            "initialization": self.initialization,
            "filter_rms": self.filter_rms,
            "dtype": dtype,
        }

    @classmethod
    def from_config(cls, config):
        return cls(**config)


def in_float32(model):
    """A network of the same weights that computes in float32, whatever `model` computes in."""
    copy = ZFNet(model.architecture, model.num_classes, dtype="float32")
    copy.set_weights(model.get_weights())
    return copy
