import numpy as np
import pytest
from PIL import Image

from zfkeras.data import batches, datasets
from zfkeras.data.batches import Share
from zfkeras.data.datasets import DatasetError


@pytest.fixture
def pictures(rng):
    """Eleven pictures, each of a grey of its own."""
    images = np.repeat(np.arange(11, dtype=np.uint8) * 20, 4 * 4 * 3).reshape(11, 4, 4, 3)
    some = datasets.load("shapes", "train", 4)
    return datasets.in_memory(some, images, np.arange(11, dtype=np.int32))


def epoch(pictures, steps, batch_size, **options):
    """Labels, weights and draws of an epoch's batches, each concatenated."""
    options = {"seed": 0, "epoch": 0} | options
    parts = batches.training_batches(pictures, batch_size, **options).take(steps)
    arrays = [np.concatenate(part) for part in zip(*parts.as_numpy_iterator(), strict=True)]
    images, labels, weights, draws = arrays
    real = weights == 1
    np.testing.assert_array_equal(images[real, 0, 0, 0], labels[real] * 20)
    return labels[real], weights, draws[real]


def test_an_epoch_holds_every_picture_once_and_then_padding(pictures):
    labels, weights, _ = epoch(pictures, steps=4, batch_size=4)

    assert sorted(labels) == list(range(11))
    assert weights.tolist() == [1] * 11 + [0] * 5
    assert batches.steps_per_epoch(11, 4) == 3
    assert batches.steps_per_epoch(12, 4) == 3


def test_order_and_draws_are_a_function_of_seed_and_epoch_alone(pictures):
    first = epoch(pictures, 3, 4)
    other_batches = epoch(pictures, 12, 1)
    again = epoch(pictures, 3, 4)

    for one, two, three in zip(first, again, other_batches, strict=True):
        np.testing.assert_array_equal(one, two)
        np.testing.assert_array_equal(one, three)
    for options in ({"epoch": 1}, {"seed": 1}):
        labels, _, draws = epoch(pictures, 3, 4, **options)
        assert labels.tolist() != first[0].tolist()
        assert np.abs(draws - first[2]).min() > 0
    assert 0 <= first[2].min() < first[2].max() < 1
    assert len(np.unique(first[2])) == first[2].size


@pytest.mark.parametrize("first_step", [1, 2])
def test_an_epoch_can_be_begun_at_any_step(pictures, first_step):
    labels, _, draws = epoch(pictures, 3, 4)

    rest, _, rest_draws = epoch(pictures, 3 - first_step, 4, first_step=first_step)

    np.testing.assert_array_equal(rest, labels[4 * first_step :])
    np.testing.assert_array_equal(rest_draws, draws[4 * first_step :])


@pytest.mark.parametrize(
    ("workers", "replicas"), [(1, 2), (2, 1), (2, 2), (4, 1)], ids=lambda value: str(value)
)
@pytest.mark.parametrize("first_step", [0, 2])
def test_workers_and_devices_share_each_batch(pictures, workers, replicas, first_step):
    """Put together again, the shares are the batch."""
    parts = []
    for worker in range(workers):
        share = Share(worker, workers, replicas)
        own = batches.training_batches(pictures, 4, 0, 0, first_step, share)
        parts.append(list(own.take(3 * replicas).as_numpy_iterator()))
    whole = batches.training_batches(pictures, 4, 0, 0, first_step).take(3)
    whole = list(whole.as_numpy_iterator())

    for step in range(3):
        shared = [
            part
            for worker in range(workers)
            for part in parts[worker][step * replicas : (step + 1) * replicas]
        ]
        for index, expected in enumerate(whole[step]):
            np.testing.assert_array_equal(np.concatenate([one[index] for one in shared]), expected)


def test_evaluation_reads_in_the_order_stored(pictures):
    parts = batches.evaluation_batches(pictures, 4).take(3)
    images, labels, weights = map(np.concatenate, zip(*parts.as_numpy_iterator(), strict=True))

    assert labels[:11].tolist() == list(range(11))
    assert weights.tolist() == [1] * 11 + [0]
    assert images[5, 0, 0, 0] == 100


@pytest.fixture
def folder(tmp_path, rng):
    for name in ("a", "b"):
        place = tmp_path / "train" / name
        place.mkdir(parents=True)
        for index in range(4):
            pixels = rng.integers(0, 255, (20, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(place / f"{index}.png")
    return tmp_path


@pytest.mark.parametrize("keep", [True, False], ids=["kept", "read again"])
def test_reading_through_finds_the_mean_and_what_cannot_be_read(folder, keep):
    good = datasets.load(str(folder), "train", 16)
    expected = [(image.numpy(), int(label)) for image, label in good.examples()]
    for broken in ("a/1.png", "b/3.png"):
        path = folder / "train" / broken
        path.write_bytes(path.read_bytes()[:60])
    counted = []

    reading = batches.read_through(good, keep, counted.append)

    del expected[7], expected[1]
    images = np.stack([image for image, _ in expected])
    assert reading.unreadable == (str(folder / "train/a/1.png"), str(folder / "train/b/3.png"))
    np.testing.assert_allclose(reading.mean_image, images.mean(axis=0), rtol=1e-6)
    assert sum(counted) == reading.pictures.count == 6
    again = [(image.numpy(), int(label)) for image, label in reading.pictures.examples()]
    for (image, label), (own, own_label) in zip(again, expected, strict=True):
        np.testing.assert_array_equal(image, own)
        assert label == own_label


def test_kept_pictures_are_not_read_again(folder):
    reading = batches.read_through(datasets.load(str(folder), "train", 16), keep=True)
    for path in folder.rglob("*.png"):
        path.unlink()

    parts = batches.training_batches(reading.pictures, 4, 0, 0).take(2)
    labels = np.concatenate([labels for _, labels, _, _ in parts])
    assert sorted(labels) == [0] * 4 + [1] * 4


def test_nothing_readable_is_an_error(folder):
    for path in folder.rglob("*.png"):
        path.write_bytes(b"no picture")

    with pytest.raises(DatasetError, match="No picture of .* can be read, of 8"):
        batches.read_through(datasets.load(str(folder), "train", 16))


def test_a_stream_gives_epochs_like_any_other(pictures):
    """The order of a stream is its own; everything else is the same."""
    held = pictures
    stream = datasets.StreamedPictures(
        "stream",
        pictures.class_names,
        pictures.count,
        pictures.side,
        lambda seed: held.records(),
        pictures.read,
    )

    labels, weights, _ = epoch(stream, 3, 4)
    rest, _, _ = epoch(stream, 2, 4, first_step=1)

    assert sorted(labels) == list(range(11))
    assert labels.tolist() != list(range(11))
    assert weights.tolist() == [1] * 11 + [0]
    np.testing.assert_array_equal(rest, labels[4:])
