"""A name or a folder -> labelled pictures as a `tf.data.Dataset`."""

import contextlib
import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow as tf

from zfkeras.data import images, shapes

SPLITS = ("train", "validation")
FOLDERS = {"train": ("train",), "validation": ("val", "validation", "test")}
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif")

# Imagenette's classes are ImageNet's synset numbers, in tensorflow-datasets as in the archive.
SYNSET_NAMES = {
    "n01440764": "tench",
    "n02102040": "English springer",
    "n02979186": "cassette player",
    "n03000684": "chain saw",
    "n03028079": "church",
    "n03394916": "French horn",
    "n03417042": "garbage truck",
    "n03425413": "gas pump",
    "n03445777": "golf ball",
    "n03888257": "parachute",
}


class DatasetError(ValueError):
    """A data set that cannot be used; the message says which one and what was expected."""


@dataclass(frozen=True)
class LabelledPictures:
    """One split of a data set.

    Attributes:
        examples: Dataset of `(image, label)`: uint8 `(resize_size, resize_size, 3)`, the centre
            square of the picture, and int32. Always in the same order, which for training is mixed.
        class_names: Name of each label.
        count: Number of examples.
    """

    examples: tf.data.Dataset
    class_names: tuple[str, ...]
    count: int


def load(source, split, resize_size, data_dir=None):
    """Loads one split of a data set.

    Args:
        source: A folder with `train/<class>/` and `val/<class>/`, `"shapes"` (pictures that
            zfkeras draws itself), or the name of a tensorflow-datasets data set such as
            `imagenette/160px-v2`, `imagenet2012` or `caltech101`.
        split: `"train"` or `"validation"`.
        resize_size: Side of the centre square that every picture is reduced to, in pixels.
        data_dir: Where tensorflow-datasets keeps its data sets; its own default if None.

    Raises:
        DatasetError: If there is no such data set, or it has no pictures or a single class.
    """
    if split not in SPLITS:
        raise DatasetError(f"Expected a split of {', '.join(SPLITS)}. Received: {split!r}.")
    if source == "shapes":
        loaded = _load_shapes(split, resize_size)
    elif Path(source).is_dir():
        loaded = _load_folder(Path(source), split, resize_size)
    else:
        loaded = _load_tfds(source, split, resize_size, data_dir)
    if len(loaded.class_names) < 2:
        raise DatasetError(
            f"{source} has a single class, {loaded.class_names[0]!r}. "
            "Expected at least two to tell apart."
        )
    return loaded


@contextlib.contextmanager
def naming_broken_pictures(source):
    """Turns TensorFlow's failure to read some picture of a folder into an error that names it."""
    try:
        yield
    except tf.errors.OpError as error:
        for path in sorted(Path(source).rglob("*")):
            if path.suffix.lower() in SUFFIXES and path.is_file():
                try:
                    images.decode(path.read_bytes())
                except (tf.errors.OpError, OSError) as broken:
                    raise DatasetError(f"{path} cannot be read as a picture.") from broken
        raise DatasetError(f"{source} cannot be read: {error.message.splitlines()[0]}") from error


def _load_shapes(split, resize_size):
    count = shapes.COUNTS[split]
    draw = functools.partial(shapes.draw, split=split, size=resize_size)

    def example(index):
        def drawn(index):
            picture = draw(int(index))
            return picture.image, picture.label

        image, label = tf.numpy_function(drawn, [index], [tf.uint8, tf.int64])
        return tf.ensure_shape(image, (resize_size, resize_size, 3)), _as_label(label)

    examples = tf.data.Dataset.range(count).map(example, num_parallel_calls=tf.data.AUTOTUNE)
    return LabelledPictures(examples, shapes.CLASS_NAMES, count)


def _load_folder(root, split, resize_size):
    folder = next((root / name for name in FOLDERS[split] if (root / name).is_dir()), None)
    if folder is None:
        raise DatasetError(
            f"{root} has no folder {' or '.join(FOLDERS[split])}. "
            "Expected train/<class>/ and val/<class>/ with pictures."
        )
    # Classes are those of the training folder, so that labels agree between splits.
    train = root / FOLDERS["train"][0]
    classes = sorted(path.name for path in (train if train.is_dir() else folder).iterdir())
    classes = [
        name
        for name in classes
        if not name.startswith(".") and ((train / name).is_dir() or (folder / name).is_dir())
    ]
    paths, labels = [], []
    for label, name in enumerate(classes):
        pictures = sorted(
            path
            for path in (folder / name).glob("*")
            if path.suffix.lower() in SUFFIXES and path.is_file()
        )
        paths.extend(map(str, pictures))
        labels.extend([label] * len(pictures))
    if not paths:
        raise DatasetError(f"{folder} has no pictures. Expected <class>/*.jpg below it.")

    if split == "train":
        # Mixed once, for good: a shuffle buffer holds a few classes only of a large folder that
        # is read class by class.
        order = np.random.default_rng(0).permutation(len(paths))
        paths, labels = [paths[index] for index in order], [labels[index] for index in order]

    def example(path, label):
        image = images.decode(tf.io.read_file(path))
        return images.centre_square(image, resize_size), label

    examples = tf.data.Dataset.from_tensor_slices((paths, tf.constant(labels, tf.int32)))
    examples = examples.map(example, num_parallel_calls=tf.data.AUTOTUNE)
    return LabelledPictures(examples, _readable(classes), len(paths))


def _load_tfds(name, split, resize_size, data_dir):
    import tensorflow_datasets as tfds  # Deferred: it takes seconds, and folders don't need it.

    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except (tfds.core.registered.DatasetNotFoundError, ValueError) as error:
        raise DatasetError(
            f"There is no folder and no tensorflow-datasets data set {name!r}. "
            "Expected a folder, 'shapes' or such a name."
        ) from error
    try:
        builder.download_and_prepare()
    except Exception as error:
        # Anything from a missing connection to a manual download that was not made.
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise DatasetError(f"{name} could not be prepared: {reason}") from error
    candidates = ("train",) if split == "train" else ("validation", "test")
    chosen = next((part for part in candidates if part in builder.info.splits), None)
    features = builder.info.features
    if chosen is None or "image" not in features or "label" not in features:
        raise DatasetError(
            f"{name} has no labelled pictures in a split {' or '.join(candidates)}. "
            f"Received: splits {', '.join(builder.info.splits)}, features {', '.join(features)}."
        )

    def example(features):
        image, label = features["image"], features["label"]
        if image.shape[-1] == 1:
            image = tf.image.grayscale_to_rgb(image)
        return images.centre_square(image, resize_size), _as_label(label)

    examples = builder.as_dataset(split=chosen, shuffle_files=False)
    examples = examples.map(example, num_parallel_calls=tf.data.AUTOTUNE)
    count = builder.info.splits[chosen].num_examples
    return LabelledPictures(examples, _readable(features["label"].names), count)


def _as_label(label):
    return tf.ensure_shape(tf.cast(label, tf.int32), ())


def _readable(class_names):
    return tuple(SYNSET_NAMES.get(name, name) for name in class_names)
