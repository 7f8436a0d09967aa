"""A name or a folder -> labelled pictures, in the order that a seed asks for."""

import contextlib
import dataclasses
import functools
import os
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow as tf

from zfkeras.data import images, shapes

SPLITS = ("train", "validation")
FOLDERS = {"train": ("train",), "validation": ("val", "validation", "test")}
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif")

# Records that a streamed data set is mixed over, on top of the order of its files. They are held
# as they are stored, at ImageNet's 110 kB each.
SHUFFLED_RECORDS = 8192

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
class IndexedPictures:
    """One split of a data set whose pictures can be read in any order.

    Attributes:
        source: What the data set is called.
        class_names: Name of each label.
        keys: Array `(count,)` of what `read` takes: paths, or numbers.
        labels: int32 `(count,)`.
        side: Side of the square that every picture is reduced to, in pixels.
        read: TensorFlow function of a key: the picture's centre square, uint8 `(side, side, 3)`.
    """

    source: str
    class_names: tuple[str, ...]
    keys: np.ndarray
    labels: np.ndarray
    side: int
    read: Callable

    @property
    def count(self):
        """Number of pictures."""
        return len(self.keys)

    def records(self, seed=None):
        """`(key, label)` of every picture, none of them read: as stored, or mixed by a seed."""
        keys, labels = self.keys, self.labels
        if seed is not None:
            order = np.random.default_rng(seed).permutation(self.count)
            keys, labels = keys[order], labels[order]
        return tf.data.Dataset.from_tensor_slices((keys, labels))

    def examples(self):
        """Dataset of `(image, label)` as stored: uint8 `(side, side, 3)` and int32."""
        return _read_all(self)

    def name(self, index):
        """What to call a picture when speaking of it."""
        key = self.keys[index]
        return key if isinstance(key, str) else f"{self.source} {key}"

    def without(self, indices):
        """The same pictures but some."""
        return dataclasses.replace(
            self, keys=np.delete(self.keys, indices), labels=np.delete(self.labels, indices)
        )


@dataclass(frozen=True)
class StreamedPictures:
    """One split of a data set that can only be read from one end to the other.

    Attributes:
        source, class_names, side, read: As of `IndexedPictures`, keys being encoded pictures.
        count: Number of pictures.
        stream: Function of a seed or None: dataset of `(key, label)`, its files mixed by the seed.
    """

    source: str
    class_names: tuple[str, ...]
    count: int
    side: int
    stream: Callable
    read: Callable

    def records(self, seed=None):
        """`(encoded picture, label)` of every picture: as stored, or mixed by a seed."""
        records = self.stream(seed)
        if seed is None:
            return records
        return records.shuffle(SHUFFLED_RECORDS, seed=seed, reshuffle_each_iteration=False)

    def examples(self):
        """Dataset of `(image, label)` as stored: uint8 `(side, side, 3)` and int32."""
        return _read_all(self)

    def name(self, index):
        """What to call a picture when speaking of it."""
        return f"{self.source}, picture {index}"

    def without(self, indices):
        """Raises DatasetError: nothing can be left out of a stream."""
        raise DatasetError(f"{self.name(indices[0])} cannot be read.")


def load(source, split, resize_size, data_dir=None, labelled=True):
    """Loads one split of a data set.

    Args:
        source: A folder with `train/<class>/` and `val/<class>/`, `"shapes"` (pictures that
            zfkeras draws itself), or the name of a tensorflow-datasets data set such as
            `imagenette/160px-v2`, `imagenet2012`, `caltech101` or `voc/2012`.
        split: `"train"` or `"validation"`.
        resize_size: Side of the centre square that every picture is reduced to, in pixels.
        data_dir: Where tensorflow-datasets keeps its data sets; its own default if None.
        labelled: Whether classes are needed. Else one will do, and a folder without `train` and
            `val` in it gives all the pictures in it, at any depth.

    Returns:
        `IndexedPictures`, or `StreamedPictures` of tensorflow-datasets.

    Raises:
        DatasetError: If there is no such data set, or it has no pictures or a single class.
    """
    if split not in SPLITS:
        raise DatasetError(f"Expected a split of {', '.join(SPLITS)}. Received: {split!r}.")
    if source == "shapes":
        loaded = _load_shapes(split, resize_size)
    elif Path(source).is_dir():
        loaded = _load_folder(Path(source), split, resize_size, labelled)
    else:
        loaded = _load_tfds(source, split, resize_size, data_dir)
    if labelled and len(loaded.class_names) < 2:
        raise DatasetError(
            f"{source} has a single class, {loaded.class_names[0]!r}. "
            "Expected at least two to tell apart."
        )
    return loaded


def in_memory(pictures, images, labels):
    """The same pictures, read already.

    Args:
        pictures: `IndexedPictures` or `StreamedPictures`.
        images: uint8 `(count, side, side, 3)`, as stored.
        labels: int32 `(count,)`, as stored.
    """
    held = tf.constant(images)
    return IndexedPictures(
        pictures.source,
        pictures.class_names,
        np.arange(len(images)),
        labels,
        pictures.side,
        lambda key: held[key],
    )


def without_autotuning(dataset):
    """A dataset that keeps its settings, in the order that they give.

    With autotuning on, the end of every pass waits up to half a minute for the tuner's thread,
    which sleeps and is not woken (TensorFlow 2.21): two fifths of a small data set's training.
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    options.deterministic = True
    return dataset.with_options(options)


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
        reason = error.message.splitlines()[0]
        raise DatasetError(f"TensorFlow gave up while it worked on {source}: {reason}") from error


def _read_all(pictures):
    examples = pictures.records().map(
        lambda key, label: (pictures.read(key), label), num_parallel_calls=os.cpu_count()
    )
    return without_autotuning(examples)


def _load_shapes(split, resize_size):
    def read(index):
        draw = functools.partial(shapes.draw, split=split, size=resize_size)
        image = tf.numpy_function(lambda index: draw(int(index)).image, [index], tf.uint8)
        return tf.ensure_shape(image, (resize_size, resize_size, 3))

    indices = np.arange(shapes.COUNTS[split])
    labels = np.array([shapes.label(index) for index in indices], np.int32)
    return IndexedPictures("shapes", shapes.CLASS_NAMES, indices, labels, resize_size, read)


def _load_folder(root, split, resize_size, labelled):
    folder = next((root / name for name in FOLDERS[split] if (root / name).is_dir()), None)
    if not labelled and not any((root / name).is_dir() for name in sum(FOLDERS.values(), ())):
        paths = _pictures_in(root, "**/*")
        if not paths:
            raise DatasetError(f"{root} has no pictures.")
        return _folder(root, ("pictures",), paths, [0] * len(paths), resize_size)
    if folder is None:
        raise DatasetError(
            f"{root} has no folder {' or '.join(FOLDERS[split])}. "
            "Expected train/<class>/ and val/<class>/ with pictures."
        )
    # Classes are those of the training folder, so that labels agree between splits.
    train = root / FOLDERS["train"][0]
    classes = _folders_in(train if train.is_dir() else folder)
    unknown = sorted(set(_folders_in(folder)) - set(classes))
    if unknown:
        raise DatasetError(f"{folder / unknown[0]} is of a class that {train} does not have.")
    paths, labels = [], []
    for label, name in enumerate(classes):
        pictures = _pictures_in(folder / name, "*")
        if not pictures:
            raise DatasetError(f"{folder / name} has no pictures. Expected some of every class.")
        paths.extend(pictures)
        labels.extend([label] * len(pictures))
    if not paths:
        raise DatasetError(f"{folder} has no folders of pictures. Expected <class>/*.jpg in it.")

    return _folder(root, _readable(classes), paths, labels, resize_size)


def _folder(root, class_names, paths, labels, resize_size):
    def read(path):
        return images.centre_square(images.decode(tf.io.read_file(path)), resize_size)

    return IndexedPictures(
        str(root), class_names, np.array(paths), np.array(labels, np.int32), resize_size, read
    )


def _pictures_in(folder, pattern):
    paths = sorted(
        str(path)
        for path in folder.glob(pattern)
        if path.suffix.lower() in SUFFIXES and path.is_file()
    )
    for path in paths:
        try:
            path.encode()
        except UnicodeEncodeError as error:
            raise DatasetError(
                f"The name of {os.fsencode(path)!r} is not in UTF-8. Expected another name."
            ) from error
    return paths


def _folders_in(folder):
    return sorted(
        path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")
    )


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
        # Anything from a missing connection to a manual download that was not made, whose
        # instructions are many lines.
        reason = textwrap.shorten(str(error) or repr(error), 600)
        raise DatasetError(f"{name} could not be prepared: {reason}") from error
    candidates = ("train",) if split == "train" else ("validation", "test")
    chosen = next((part for part in candidates if part in builder.info.splits), None)
    features = builder.info.features
    if chosen is None or "image" not in features or not {"label", "objects"} & set(features):
        raise DatasetError(
            f"{name} has no labelled pictures in a split {' or '.join(candidates)}. "
            f"Received: splits {', '.join(builder.info.splits)}, features {', '.join(features)}."
        )
    if "label" in features:
        class_names = features["label"].names
    else:
        class_names = features["objects"].feature["label"].names

    def record(features):
        if "label" in features:
            label = features["label"]
        else:
            # PASCAL VOC: a picture has many objects and the paper's softmax one label. The paper
            # does not say which; the largest object's is what most of the picture shows.
            top, left, bottom, right = tf.unstack(features["objects"]["bbox"], axis=1)
            label = features["objects"]["label"][tf.argmax((bottom - top) * (right - left))]
        return features["image"], tf.ensure_shape(tf.cast(label, tf.int32), ())

    def stream(seed):
        options = tf.data.Options()
        options.deterministic = True
        config = tfds.ReadConfig(options=options, shuffle_seed=seed, try_autocache=False)
        stored = builder.as_dataset(
            split=chosen,
            shuffle_files=seed is not None,
            read_config=config,
            decoders={"image": tfds.decode.SkipDecoding()},
        )
        return stored.map(record)

    def read(encoded):
        return images.centre_square(images.decode(encoded), resize_size)

    count = builder.info.splits[chosen].num_examples
    return StreamedPictures(name, _readable(class_names), count, resize_size, stream, read)


def _readable(class_names):
    return tuple(SYNSET_NAMES.get(name, name) for name in class_names)
