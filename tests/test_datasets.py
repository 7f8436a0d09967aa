import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zfkeras.data import datasets, images, samples, shapes
from zfkeras.data.datasets import DatasetError


@pytest.fixture
def folder(tmp_path, rng):
    """Two classes; a fifth of the pictures greyscale, sizes mixed."""
    for split, count in (("train", 5), ("val", 3)):
        for label, name in enumerate(("n01440764", "zebra")):
            place = tmp_path / split / name
            place.mkdir(parents=True)
            for index in range(count):
                size = (30 + 7 * index, 50 - 3 * index)
                colour = (40 + 100 * label, 10 * index, 0)
                picture = Image.new("RGB", size, colour)
                (picture.convert("L") if index == 4 else picture).save(place / f"{index}.png")
            (place / "notes.txt").write_text("not a picture")
            (place / "folder.jpg").mkdir()
        (tmp_path / split / ".checkpoints").mkdir()
    return tmp_path


def test_a_folder_gives_its_pictures_with_their_labels(folder):
    loaded = datasets.load(str(folder), "train", 24)

    examples = [(image.numpy(), int(label)) for image, label in loaded.examples()]
    assert loaded.class_names == ("tench", "zebra")  # No hidden folder, no folder named as a file.
    assert loaded.count == len(examples) == 10
    assert [label for _, label in examples] == [0] * 5 + [1] * 5
    for image, _ in examples:
        assert image.shape == (24, 24, 3)
        assert image.dtype == np.uint8
    colours = {(label, *image[0, 0].tolist()) for image, label in examples if image.std() > 0}
    assert {(1, 140, index * 10, 0) for index in range(4)} <= colours
    assert {(0, 40, index * 10, 0) for index in range(4)} <= colours


def test_records_are_mixed_by_a_seed_and_nothing_is_read(folder):
    loaded = datasets.load(str(folder), "train", 24)

    mixed, again, other, stored = (
        [(key.decode(), int(label)) for key, label in loaded.records(seed).as_numpy_iterator()]
        for seed in (3, 3, 4, None)
    )

    assert mixed == again != other
    assert mixed != stored == sorted(mixed) == sorted(other)
    assert stored[0] == (str(folder / "train/n01440764/0.png"), 0)


def test_pictures_can_be_left_out(folder):
    loaded = datasets.load(str(folder), "train", 24).without([0, 7])

    names = [loaded.name(index) for index in range(loaded.count)]
    assert loaded.count == 8
    assert str(folder / "train/n01440764/0.png") not in names
    assert str(folder / "train/zebra/2.png") not in names
    assert loaded.labels.tolist() == [0] * 4 + [1] * 4


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    """Makes tensorflow-datasets know two data sets that need no download."""
    tfds = pytest.importorskip("tensorflow_datasets")

    class Tiny(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")
        SHAPE = (None, None, 3)
        pkg_dir_path = tmp_path

        def _info(self):
            names = ["n01440764", "zebra"]
            features = tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=self.SHAPE),
                    "label": tfds.features.ClassLabel(names=names),
                }
            )
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, download_manager):
            return {"train": self._generate_examples(6), "test": self._generate_examples(4)}

        def _generate_examples(self, count):
            channels = self.SHAPE[-1]
            for index in range(count):
                image = np.full((20 + index, 30, channels), 10 * index, np.uint8)
                yield index, {"image": image, "label": index % 2}

    class TinyPictures(Tiny, skip_registration=True):
        name = "tiny_pictures"

    class TinyDigits(Tiny, skip_registration=True):
        name = "tiny_digits"
        SHAPE = (None, None, 1)

    class TinyScenes(Tiny, skip_registration=True):
        name = "tiny_scenes"

        def _info(self):
            kind = tfds.features.ClassLabel(names=["n01440764", "zebra"])
            objects = {"bbox": tfds.features.BBoxFeature(), "label": kind}
            features = {"image": tfds.features.Image(), "objects": tfds.features.Sequence(objects)}
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _generate_examples(self, count):
            small, large = (tfds.features.BBox(0.0, 0.0, side, side) for side in (0.3, 0.9))
            for index in range(2):
                objects = [{"bbox": small, "label": index}, {"bbox": large, "label": 1 - index}]
                yield index, {"image": np.zeros((20, 30, 3), np.uint8), "objects": objects}

    builders = {"tiny_pictures": TinyPictures, "tiny_digits": TinyDigits, "tiny_scenes": TinyScenes}

    def builder(name, data_dir):
        if name not in builders:
            raise tfds.core.registered.DatasetNotFoundError(name)
        return builders[name](data_dir=data_dir)

    monkeypatch.setattr(tfds, "builder", builder)
    return str(tmp_path)


@pytest.mark.parametrize("name", ["tiny_pictures", "tiny_digits"])
@pytest.mark.parametrize(("split", "count"), [("train", 6), ("validation", 4)])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::PendingDeprecationWarning")
def test_tensorflow_datasets_in_colour_and_grey_are_loaded_by_name(prepared, name, split, count):
    loaded = datasets.load(name, split, 16, prepared)

    examples = list(loaded.examples())
    assert loaded.class_names == ("tench", "zebra")
    assert loaded.count == len(examples) == count
    values = {(int(image[0, 0, 0]) // 10, int(label)) for image, label in examples}
    assert values == {(index, index % 2) for index in range(count)}
    assert examples[0][0].shape == (16, 16, 3)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::PendingDeprecationWarning")
def test_imagenet_says_how_to_download_it(tmp_path):
    """The real one of tensorflow-datasets, which must be importable to the last module."""
    with pytest.raises(datasets.DatasetError, match="ILSVRC2012_img_train.tar") as raised:
        datasets.load("imagenet2012", "train", 256, str(tmp_path))
    assert "\n" not in str(raised.value)


def test_shapes_need_no_files():
    loaded = datasets.load("shapes", "validation", 40)

    image, label = next(iter(loaded.examples().skip(3)))
    picture = shapes.draw(3, "validation", 40)
    np.testing.assert_array_equal(image, picture.image)
    assert label == picture.label == 3
    assert loaded.count == shapes.COUNTS["validation"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::PendingDeprecationWarning")
def test_a_stream_is_mixed_by_a_seed_and_cannot_be_cut(prepared):
    loaded = datasets.load("tiny_pictures", "train", 16, prepared)

    mixed, again, stored = (
        [int(images.decode(key)[0, 0, 0]) // 10 for key, _ in loaded.records(seed)]
        for seed in (3, 3, None)
    )

    assert mixed == again != stored
    assert sorted(mixed) == sorted(stored)
    with pytest.raises(DatasetError, match="tiny_pictures, picture 2 cannot be read"):
        loaded.without([2, 4])


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::PendingDeprecationWarning")
def test_a_picture_of_many_objects_has_the_label_of_the_largest(prepared):
    loaded = datasets.load("tiny_scenes", "train", 16, prepared)

    assert [int(label) for _, label in loaded.records()] == [1, 0]


@pytest.mark.parametrize("index", range(12))
def test_shapes_have_their_parts_where_they_say(index):
    small, large = shapes.draw(index, size=73), shapes.draw(index, size=146)

    assert small.parts
    for name, (row, column) in small.parts.items():
        assert 0 <= row < 73
        assert 0 <= column < 73
        np.testing.assert_allclose(np.array(large.parts[name]) / 2, (row, column), atol=1e-6)


def test_the_eyes_of_a_drawn_face_are_white_around_the_pupil():
    face = shapes.draw(0, size=200)
    row, column = (round(place) for place in face.parts["left eye"])

    across = face.image[row, column - 30 : column + 30].astype(int)
    assert (across.min(axis=1) > 230).any()


def test_every_shape_is_its_own_and_always_the_same():
    first = [shapes.draw(index, size=32).image for index in range(12)]

    np.testing.assert_array_equal(first[7], shapes.draw(7, size=32).image)
    assert len({image.tobytes() for image in first}) == 12
    assert shapes.draw(7, "validation", 32).image.tobytes() != first[7].tobytes()


@pytest.mark.parametrize("name", samples.NAMES)
def test_samples_are_installed_photographs(name):
    picture = samples.load(name)

    assert picture.ndim == 3
    assert picture.shape[2] == 3
    assert min(picture.shape[:2]) >= 300
    assert picture.dtype == np.uint8


def empty(folder):
    for picture in folder.rglob("*.png"):
        picture.unlink()


def empty_one_class(folder):
    for picture in (folder / "val/zebra").glob("*.png"):
        picture.unlink()


def forget_one_class(folder):
    shutil.rmtree(folder / "val/zebra")


def add_a_class(folder):
    (folder / "val/quagga").mkdir()


def keep_one_class(folder):
    for split in ("train", "val"):
        shutil.rmtree(folder / split / "zebra")


def remove_validation(folder):
    (folder / "val").rename(folder / "elsewhere")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (empty, "n01440764 has no pictures"),
        (empty_one_class, "val/zebra has no pictures"),
        (forget_one_class, "val/zebra has no pictures"),
        (add_a_class, "val/quagga is of a class that .*train does not have"),
        (keep_one_class, "single class, 'tench'"),
        (remove_validation, "no folder val or validation or test"),
    ],
    ids=["empty", "empty class", "missing class", "new class", "one class", "no validation"],
)
def test_folders_that_cannot_be_used_say_why(folder, damage, message):
    damage(folder)

    with pytest.raises(DatasetError, match=message):
        datasets.load(str(folder), "validation", 24)


def test_unknown_names_are_named(tmp_path):
    with pytest.raises(DatasetError, match="no tensorflow-datasets data set 'no_such_thing'"):
        datasets.load("no_such_thing", "train", 24, str(tmp_path))


def test_a_folder_without_classes_will_do_where_none_are_needed(tmp_path, rng):
    for name in ("b.png", "deep/down/a.jpg", "notes.txt"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".txt":
            path.write_text("no picture")
        else:
            Image.fromarray(rng.integers(0, 255, (20, 30, 3), np.uint8)).save(path)

    pictures = datasets.load(str(tmp_path), "validation", 16, labelled=False)

    assert [Path(key).name for key in pictures.keys] == ["b.png", "a.jpg"]
    assert [image.shape for image, _ in pictures.examples()] == [(16, 16, 3)] * 2
    with pytest.raises(DatasetError, match="has no folder val or validation or test"):
        datasets.load(str(tmp_path), "validation", 16)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="empty has no pictures"):
        datasets.load(str(tmp_path / "empty"), "validation", 16, labelled=False)


def test_a_file_name_that_is_no_text_is_named(tmp_path, rng):
    path = os.fsencode(tmp_path) + b"/\xff.png"
    with open(path, "wb") as file:
        Image.fromarray(rng.integers(0, 255, (20, 30, 3), np.uint8)).save(file, "PNG")
    with pytest.raises(DatasetError, match=r"xff.png' is not in UTF-8"):
        datasets.load(str(tmp_path), "validation", 16, labelled=False)
