import csv
import dataclasses
import re

import numpy as np
import pytest
import tensorflow as tf
from click.testing import CliRunner
from PIL import Image

from zfkeras import evolution, plots, rendering
from zfkeras.cli import cli
from zfkeras.data import datasets, images, shapes
from zfkeras.deconvnet import Deconvnet
from zfkeras.gallery import GalleryError
from zfkeras.training.config import TrainingConfig
from zfkeras.training.loop import train
from zfkeras.training.run import TrainingError, load_run, load_snapshots

MAPS = {"conv2": np.array([3, 40]), "conv4": np.array([0, 7, 100])}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("pictures")
    for split, count in (("train", 5), ("val", 2)):
        for label, name in enumerate(("face", "car")):
            place = root / split / name
            place.mkdir(parents=True)
            for index in range(count):
                picture = shapes.draw(6 * index + label, size=146).image
                Image.fromarray(picture).save(place / f"{index}.png")
    return root


@pytest.fixture(scope="module")
def workdir(folder, tmp_path_factory):
    """A run of three epochs, the first and the last of which were kept."""
    place = tmp_path_factory.mktemp("run")
    config = TrainingConfig.load(
        preset="zfnet-small", dataset=str(folder), epochs=3, global_batch_size=5
    )
    train(dataclasses.replace(config, snapshot_epochs=(1, 3)), place)
    return place


@pytest.fixture
def pictures(folder):
    return datasets.load(str(folder), "train", 146)


def follow(workdir, pictures, output, **options):
    run = load_run(workdir)
    return evolution.make(
        load_snapshots(workdir),
        run.mean_image,
        run.class_names,
        pictures,
        output,
        list(MAPS),
        MAPS,
        **options,
    )


def test_every_snapshot_has_its_own_strongest_unit(workdir, pictures, tmp_path):
    followed, epochs = follow(workdir, pictures, tmp_path / "out")

    assert epochs == [1, 3]
    squares = np.stack([image for image, _ in pictures.examples().as_numpy_iterator()])
    inputs = images.centre_crop(squares - load_run(workdir).mean_image, (128, 128))
    for time, (_, model) in enumerate(load_snapshots(workdir)):
        deconvnet = Deconvnet(model)
        for layer, feature_maps in MAPS.items():
            maps = deconvnet.ascend(tf.constant(inputs), layer)[0].numpy()
            best = maps.max(axis=(1, 2))[:, feature_maps]
            found = followed[layer][time]
            np.testing.assert_array_equal(found.pictures[:, 0], best.argmax(axis=0))
            np.testing.assert_allclose(found.activations[:, 0], best.max(axis=0), rtol=1e-5)
    weights = [model.get_weights()[0].copy() for _, model in load_snapshots(workdir)]
    assert np.abs(weights[0] - weights[1]).max() > 0
    np.testing.assert_array_equal(weights[1], load_run(workdir).model.get_weights()[0])


def test_the_winners_are_listed_and_drawn(workdir, pictures, tmp_path):
    followed, _ = follow(workdir, pictures, tmp_path / "out")

    with (tmp_path / "out" / "evolution.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 5
    assert {row["layer"] for row in rows} == set(MAPS)
    for row in rows:
        time, index = (1, 3).index(int(row["epoch"])), list(MAPS[row["layer"]])
        found = followed[row["layer"]][time]
        place = index.index(int(row["feature_map"])), 0
        assert int(row["picture"]) == found.pictures[place]
        assert row["name"] == pictures.name(found.pictures[place])
        before = followed[row["layer"]][0].pictures[place]
        assert row["changed"] == str(int(time == 1 and before != found.pictures[place]))
    sheet = evolution.draw(followed["conv4"])
    assert sheet.shape == (3 * 112 + 2 * 4, 2 * 112 + 4, 3)
    last = rendering.enlarge(rendering.draw_signed(followed["conv4"][1].projections[2, 0]))
    np.testing.assert_array_equal(sheet[-112:, -112:], last)
    with Image.open(tmp_path / "out" / "conv4.png") as figure:
        assert figure.width > sheet.shape[1]
    axes = plots.evolution(sheet, "conv4", [0, 7, 100], [1, 3]).axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "3"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["0", "7", "100"]


def test_following_that_was_stopped_goes_on(workdir, pictures, tmp_path):
    class Stopped(Exception):
        pass

    def interrupt(stage, done, total):
        stages.append(stage)
        if stage == "epoch 3: projecting conv4":
            raise Stopped

    stages = []
    with pytest.raises(Stopped):
        follow(workdir, pictures, tmp_path / "out", on_progress=interrupt)
    again = []
    follow(workdir, pictures, tmp_path / "out", on_progress=lambda stage, *_: again.append(stage))

    assert "epoch 1: scanning" in stages
    assert set(again) == {"epoch 3: projecting conv4"}
    with pytest.raises(GalleryError, match="follows other layers or feature maps"):
        evolution.make([], None, (), pictures, tmp_path / "out", ["conv2"], MAPS)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("kept")
    with pytest.raises(GalleryError, match="other holds something else"):
        follow(workdir, pictures, tmp_path / "other")


def test_random_maps_are_a_function_of_the_seed():
    counts = {"conv1": 4, "conv2": 96}

    chosen = evolution.choose_maps(counts, 6, 0)

    assert chosen["conv1"].tolist() == [0, 1, 2, 3]
    assert len(set(chosen["conv2"])) == 6
    assert chosen["conv2"].tolist() == evolution.choose_maps(counts, 6, 0)["conv2"].tolist()
    assert chosen["conv2"].tolist() != evolution.choose_maps(counts, 6, 1)["conv2"].tolist()


def test_the_command_follows_a_run(workdir, folder, tmp_path):
    arguments = ["evolution", str(workdir), "--dataset", str(folder), "--layers", "conv1,conv3"]
    output = ["--output", str(tmp_path / "out")]

    result = CliRunner().invoke(cli, [*arguments, *output, "--count", "2"])

    assert result.exit_code == 0, result.output
    assert re.search("figure for each of conv1, conv3 to .*, epochs 1, 3.$", result.output.strip())
    assert (tmp_path / "out" / "conv3.png").exists()
    result = CliRunner().invoke(cli, [*arguments[:-1], "conv8", *output])
    assert result.exit_code == 2
    assert result.output.strip().endswith("Received: conv8.")
    with pytest.raises(TrainingError, match="holds no training run with snapshots"):
        next(load_snapshots(tmp_path))
