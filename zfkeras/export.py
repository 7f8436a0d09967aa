"""Trained models as SavedModels that need neither Keras nor zfkeras to run.

`save` writes `<folder>/<version>/`, TF Serving's layout, with a model card; `load` opens it.

Signatures, batch and picture size free, preprocessing inside the graph:

`serving_default`
    `pictures` uint8 `(batch, height, width, 3)` -> `probabilities` float32 and `class_names`
    string, both `(batch, classes)`.
`project_<layer>`, one for every convolutional layer
    `pictures` as above and `feature_map` int32 `(count,)`, one per picture, or any number for a
    single picture. -1 is the picture's strongest feature map, -2 the next, and so on. ->
    `projection` float32 `(count, input_height, input_width, 3)`, `activation` float32, `row`,
    `column` and `feature_map` int32, all `(count,)`, `box` and `window` int32 `(count, 4)` (see
    `zfkeras.projections.Projections`), `picture` uint8, what the network saw, shaped like
    `projection`.
`first_layer_filters`
    nothing -> `filters` float32 `(maps, size, size, 3)`.
"""

import dataclasses
import datetime
import functools
import json
import platform
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from PIL import Image

from zfkeras import __version__, rendering
from zfkeras.architecture import Architecture
from zfkeras.data import images
from zfkeras.deconvnet import Deconvnet
from zfkeras.models import ZFNet, in_float32
from zfkeras.projections import Projections

CARD = "card.json"
MEAN_IMAGE = "mean_image.npy"
FILTER_COLUMNS = 12
REQUIRED_KEYS = ("name", "class_names", "errors")


class ModelError(ValueError):
    """A folder that holds no model we can use; the message says which and why."""


def save(run, folder, command):
    """Writes a run's model as the next version in a folder.

    The version is written beside its place and renamed into it, so a server that polls the folder
    never sees half a model.

    Args:
        run: A `zfkeras.training.run.Run`.
        folder: Folder of the model's versions, made if missing.
        command: The command line that made the run, for the card.

    Returns:
        Path of the new version.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    versions = [int(path.name) for path in folder.iterdir() if path.name.isdigit()]
    version = folder / str(max(versions, default=0) + 1)
    beside = Path(tempfile.mkdtemp(prefix=".partial-", dir=folder))
    try:
        _write_saved_model(run, beside)
        card = _card(run, folder.resolve().name, command)
        (beside / CARD).write_text(json.dumps(card, indent=2) + "\n")
        (beside / "README.md").write_text(_card_text(card))
        np.save(beside / MEAN_IMAGE, run.mean_image)
        mean_picture = Image.fromarray(np.clip(run.mean_image, 0, 255).round().astype(np.uint8))
        mean_picture.save(beside / "mean_image.png")
        kernel = np.asarray(run.model.get_layer(run.model.feature_layers[0]).kernel)
        filters = rendering.filter_sheet(kernel.transpose(3, 0, 1, 2), columns=FILTER_COLUMNS)
        rendering.save(filters, beside / "filters.png")
        beside.chmod(0o755)  # Temporary directories are private; a server runs as someone else.
        beside.rename(version)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    return version


def load(folder):
    """Opens an exported model.

    Args:
        folder: Folder of a version, or of versions, of which the highest is taken.

    Raises:
        ModelError: If the folder holds no model that `save` wrote.
    """
    version = _version(Path(folder))
    try:
        card = json.loads((version / CARD).read_text())
        architecture = Architecture.from_json(json.dumps(card["architecture"]))
        for key in REQUIRED_KEYS:
            card[key]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{version} has no readable {CARD}. Expected a model that zfkeras exported."
        ) from error
    try:
        saved_model = tf.saved_model.load(str(version))
    except Exception as error:
        # A damaged SavedModel fails in as many ways as there are bytes in it.
        raise ModelError(f"{version} holds a SavedModel that does not load.") from error
    layers = [f"project_{block.name}" for block in architecture.blocks]
    if not {"serving_default", "first_layer_filters", *layers} <= set(saved_model.signatures):
        raise ModelError(f"{version} holds a SavedModel without the signatures of zfkeras.")
    return ExportedModel(version, card, architecture, saved_model)


def find(folder):
    """Paths of all exported models below a folder, for a person to choose from."""
    cards = sorted(Path(folder).glob(f"*/*/{CARD}"))
    # A version that is still being written has a hidden name.
    return [
        card.parent
        for card in cards
        if card.parent.name.isdigit() and (card.parent / "saved_model.pb").exists()
    ]


@dataclass(frozen=True)
class ExportedModel:
    """A SavedModel and its card. Runs on TensorFlow alone and builds no network.

    Attributes:
        path: Folder of the version.
        card: What is known of the model, as in `card.json`.
        architecture: Its `Architecture`.
        saved_model: What `tf.saved_model.load` gave.
    """

    path: Path
    card: dict
    architecture: Architecture
    saved_model: object

    @property
    def class_names(self):
        return tuple(self.card["class_names"])

    @property
    def feature_layers(self):
        """Names of the layers that can be projected, lowest first."""
        return tuple(block.name for block in self.architecture.blocks)

    def classify(self, picture):
        """Probability of every class for one picture, uint8 `(height, width, 3)`."""
        outputs = self.saved_model.signatures["serving_default"](pictures=_batch(picture))
        return outputs["probabilities"].numpy()[0]

    def project(self, picture, layer, feature_maps):
        """Projects the strongest unit of feature maps of one picture.

        Args:
            picture: uint8 `(height, width, 3)`.
            layer: Name of the layer.
            feature_maps: Sequence of feature maps; -1 is the strongest, -2 the next, and so on.

        Returns:
            `(projections, seen)`: `Projections`, and the picture as the network saw it, uint8
            `(input_height, input_width, 3)`, which boxes and windows refer to.

        Raises:
            ValueError: If the layer is unknown or a feature map out of range.
        """
        if layer not in self.feature_layers:
            raise ValueError(
                f"Expected a layer of {', '.join(self.feature_layers)}. Received: {layer!r}."
            )
        count = self.feature_map_count(layer)
        for feature_map in feature_maps:
            if not -count <= feature_map < count:
                raise ValueError(
                    f"{layer} has feature maps 0 to {count - 1}. Received: {feature_map}."
                )
        outputs = self.saved_model.signatures[f"project_{layer}"](
            pictures=_batch(picture), feature_map=tf.constant(feature_maps, tf.int32)
        )
        outputs = {name: tensor.numpy() for name, tensor in outputs.items()}
        projections = Projections(
            layer=layer,
            pictures=np.zeros(len(feature_maps), np.int32),
            feature_maps=outputs["feature_map"],
            rows=outputs["row"],
            columns=outputs["column"],
            activations=outputs["activation"],
            boxes=outputs["box"],
            windows=outputs["window"],
            projections=outputs["projection"],
        )
        return projections, outputs["picture"][0]

    def project_strongest(self, picture, layer, top_k=9):
        """Projects the `top_k` strongest feature maps of one picture, strongest first."""
        return self.project(picture, layer, range(-1, -top_k - 1, -1))

    def feature_map_count(self, layer):
        """How many feature maps a layer has."""
        return self.architecture.feature_map_counts()[layer]

    def first_layer_filters(self):
        """The filters of the lowest layer, float32 `(maps, size, size, 3)`."""
        return self.saved_model.signatures["first_layer_filters"]()["filters"].numpy()

    def restore(self):
        """The Keras model with its weights, in float32, and its mean image."""
        model = ZFNet(self.architecture, len(self.class_names), dtype="float32")
        for weight, value in zip(model.weights, self.saved_model.weights, strict=True):
            weight.assign(value)
        return model, np.load(self.path / MEAN_IMAGE)


def _write_saved_model(run, path):
    model = in_float32(run.model)
    deconvnet = Deconvnet(model)
    side, input_size = run.mean_image.shape[0], model.architecture.input_size
    mean_image = tf.constant(run.mean_image)
    class_names = tf.constant(run.class_names)

    def prepare(pictures):
        squares = images.centre_square(pictures, side)
        inputs = images.centre_crop(images.subtract_mean(squares, mean_image), input_size)
        return images.centre_crop(squares, input_size), inputs

    def classify(pictures):
        _, inputs = prepare(pictures)
        probabilities = tf.nn.softmax(model(inputs, training=False))
        return {
            "probabilities": probabilities,
            "class_names": tf.tile(class_names[None], (tf.shape(probabilities)[0], 1)),
        }

    def project(pictures, feature_map, layer, maps):
        count = tf.shape(feature_map)[0]
        seen, inputs = prepare(pictures)
        batch = tf.shape(inputs)[0]
        checks = [
            tf.debugging.Assert(
                (batch == 1) | (batch == count),
                ["Expected one feature map for every picture, or one picture."],
            ),
            tf.debugging.Assert(
                tf.reduce_all((feature_map >= -maps) & (feature_map < maps)),
                [f"Expected feature maps of {layer} between {-maps} and {maps - 1}."],
            ),
        ]
        # Else a look-up may run, and fail with its own message, before its check.
        with tf.control_dependencies(checks):
            feature_map, inputs = tf.identity(feature_map), tf.identity(inputs)
        owners = tf.minimum(tf.range(count), batch - 1)
        outputs = deconvnet.project_owned(inputs, owners, feature_map, layer)
        return {
            "projection": outputs["projections"],
            "activation": outputs["activations"],
            "row": outputs["rows"],
            "column": outputs["columns"],
            "feature_map": outputs["feature_maps"],
            "box": outputs["boxes"],
            "window": outputs["windows"],
            "picture": tf.gather(seen, owners),
        }

    def first_layer_filters():
        return {"filters": tf.transpose(deconvnet.conv_blocks[0].kernel.value, (3, 0, 1, 2))}

    pictures = tf.TensorSpec((None, None, None, 3), tf.uint8, "pictures")
    feature_map = tf.TensorSpec((None,), tf.int32, "feature_map")
    signatures = {
        "serving_default": tf.function(classify, [pictures], autograph=False),
        "first_layer_filters": tf.function(first_layer_filters, [], autograph=False),
    }
    for layer, maps in model.architecture.feature_map_counts().items():
        endpoint = functools.partial(project, layer=layer, maps=maps)
        signatures[f"project_{layer}"] = tf.function(
            endpoint, [pictures, feature_map], autograph=False
        )
    # Not Keras's ExportArchive: it writes every weight twice, once as a copy of its own.
    module = tf.Module()
    module.weights = [weight.value for weight in model.weights]
    tf.saved_model.save(module, str(path), signatures)


def _card(run, name, command):
    config = dataclasses.asdict(run.config)
    return {
        "name": name,
        "date": datetime.date.today().isoformat(),
        "command": command,
        "class_names": list(run.class_names),
        "errors": dataclasses.asdict(run.errors),
        "epochs": len(run.metrics),
        "training": config,
        "architecture": json.loads(run.model.architecture.to_json()),
        "parameters": int(run.model.count_params()),
        "mean_image": MEAN_IMAGE,
        "versions": {
            "zfkeras": __version__,
            "keras": keras.__version__,
            "tensorflow": tf.__version__,
            "python": platform.python_version(),
        },
        "metrics": run.metrics,
    }


def _card_text(card):
    errors, training = card["errors"], card["training"]
    height, width = card["architecture"]["input_size"]
    classes = ", ".join(card["class_names"])
    return f"""# {card["name"]}

A `{training["architecture"]}` of {card["parameters"]:,} parameters for {height} x {width} pictures,
trained on {card["date"]} with zfkeras {card["versions"]["zfkeras"]}.

| | |
|---|---|
| data | `{training["dataset"]}` |
| classes | {classes} |
| epochs | {card["epochs"]}, {training["global_batch_size"]} pictures per update |
| recipe | SGD, momentum {training["momentum"]}, learning rate {training["learning_rate"]} \
({training["schedule"]}), weight decay {training["weight_decay"]}, \
filter RMS at most {training["filter_rms"]}, label smoothing {training["label_smoothing"]}, \
`{training["initialization"]}` initialization, `{training["crops"]}` crops, \
colour jitter {training["colour_jitter"]}, \
{training["precision"]} |
| top-1 error | {errors["top1"]:.2%} on {errors["count"]:,} validation pictures, one view |
| top-5 error | {errors["top5"]:.2%} |
| preprocessing | shorter side to {training["resize_size"] or "256/224 of the input"}, \
centre square, mean image (`mean_image.npy`) subtracted, centre crop; \
all of it inside the SavedModel |

Made by:

    {card["command"]}
"""


def _version(folder):
    if not folder.is_dir():
        raise ModelError(f"There is no folder {folder}. Expected an exported model.")
    if (folder / "saved_model.pb").exists():
        return folder
    versions = [
        path
        for path in folder.iterdir()
        if path.name.isdigit() and (path / "saved_model.pb").exists()
    ]
    if not versions:
        raise ModelError(f"{folder} holds no exported model. Expected <version>/saved_model.pb.")
    return max(versions, key=lambda path: int(path.name))


def _batch(picture):
    return tf.constant(np.asarray(picture, np.uint8)[None])
