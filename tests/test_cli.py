import dataclasses
import json
import shlex
import subprocess
import sys
from pathlib import Path

import click
import keras
import numpy as np
import pytest
import tensorflow as tf
from click.testing import CliRunner
from PIL import Image

from zfkeras import cli
from zfkeras.cli.errors import OneLineCommand, one_line_errors
from zfkeras.cli.train import training_command
from zfkeras.data import shapes
from zfkeras.training.config import TrainingConfig


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(command, *arguments):
        return CliRunner().invoke(command, [str(argument) for argument in arguments])

    return run


@pytest.fixture
def picture(tmp_path, rng):
    path = tmp_path / "picture.png"
    Image.fromarray(rng.integers(0, 255, (50, 61, 3), dtype=np.uint8)).save(path)
    return path


def assert_one_line(result, *parts):
    assert result.exit_code == 2, result.output
    (error,) = result.stderr.splitlines()
    assert error.startswith("Error: ")
    for part in parts:
        assert part in error


def commands():
    yield "zfkeras", cli.cli
    yield "zfkeras-train", cli.train
    for name, command in cli.cli.commands.items():
        yield f"zfkeras {name}", command


@pytest.mark.parametrize(("name", "command"), list(commands()), ids=lambda value: str(value))
def test_every_command_and_option_has_help(run, name, command):
    result = run(command, "--help")

    assert result.exit_code == 0
    assert command.help
    for parameter in command.params:
        if isinstance(parameter, click.Option) and parameter.name not in ("version", "help"):
            assert parameter.opts[0] in result.output


def test_project_writes_a_sheet_and_its_numbers(run, export_dir, picture, tmp_path):
    result = run(
        cli.cli,
        *("project", picture, "--model", export_dir, "--layer", "conv3", "--top", 4),
        *("--output", "out/sheet.png", "--numbers", "out/numbers.npz"),
    )

    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == "Wrote 4 projections of conv3 to out/sheet.png"
    with Image.open(tmp_path / "out/sheet.png") as sheet:
        assert sheet.size == (2 * (2 * 112 + 4) + 16, 2 * 112 + 4)
    with np.load(tmp_path / "out/numbers.npz") as numbers:
        assert numbers["projections"].shape == (4, 29, 37, 3)
        assert numbers["boxes"].shape == (4, 4)
        assert numbers["picture"].shape == (29, 37, 3)


def test_project_takes_given_feature_maps(run, export_dir, picture):
    result = run(
        cli.cli,
        *("project", picture, "--model", export_dir, "--layer", "conv2"),
        *("--feature-map", 5, "--feature-map", 1, "--numbers", "numbers.npz"),
    )

    assert result.exit_code == 0, result.output
    with np.load("numbers.npz") as numbers:
        assert numbers["feature_maps"].tolist() == [5, 1]


def test_project_takes_a_keras_file_of_grey_pictures(run, picture, tmp_path):
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [
            keras.Input((None, None, 1)),
            keras.layers.Conv2D(4, 3, activation="relu", name="low"),
            keras.layers.Conv2D(5, 3, activation="relu", name="high"),
        ]
    )
    model.save("grey.keras")
    settings = ("--preprocessing", "unit", "--input-size", "24x30", "--numbers", "numbers.npz")

    result = run(cli.cli, "project", picture, "--model", "grey.keras", "--top", 2, *settings)

    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == ["Wrote 2 projections of high to sheet.png"]
    with np.load("numbers.npz") as numbers:
        found, seen = numbers["projections"], numbers["picture"]
        assert found.shape == (2, 24, 30, 3)
        # By hand: grey is a mean of the colours with the eye's weights.
        grey = seen[None] @ np.float32([0.299, 0.587, 0.114])[:, None] / 255
        strongest = np.sort(model(grey).numpy().max(axis=(0, 1, 2)))[::-1]
        np.testing.assert_allclose(numbers["activations"], strongest[:2], rtol=1e-4)
    np.testing.assert_allclose(found[..., 0] / 0.299, found[..., 1] / 0.587, atol=1e-6)
    result = run(cli.cli, "project", picture, "--model", "grey.keras")
    assert_one_line(result, "leaves the size of its pictures open")


@pytest.mark.parametrize("mode", ["L", "RGBA", "I;16", "1"])
def test_project_handles_every_kind_of_picture(run, export_dir, tmp_path, mode):
    path = tmp_path / "picture.png"
    Image.new(mode, (40, 30)).save(path)

    result = run(cli.cli, "project", path, "--model", export_dir, "--layer", "conv1", "--top", 1)

    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("--layer", "conv9"), ("one of conv1, conv2, conv3. Received: layer='conv9'",)),
        (("--layer", "conv3", "--feature-map", "5"), ("--feature-map", "0 to 4", "5")),
        (("--layer", "conv3", "--feature-map", "-1"), ("--feature-map", "-1")),
        (("--layer", "conv3", "--top", "6"), ("--top", "5 feature maps")),
        (("--layer", "conv3", "--top", "0"), ("--top",)),
        (("--layer", "conv3", "--top", "2", "--output", "a.txt"), ("a.txt",)),
        (("--layer", "conv3", "--top", "2", "--numbers", "a.txt"), ("--numbers", "a.txt")),
    ],
    ids=["layer", "map", "negative map", "too many", "none", "output", "numbers"],
)
def test_project_names_what_is_wrong(run, export_dir, picture, arguments, parts):
    result = run(cli.cli, "project", picture, "--model", export_dir, *arguments)

    assert_one_line(result, *parts)


def text(path):
    path.write_text("not a picture")


def truncated(path):
    Image.effect_noise((60, 60), 50).convert("RGB").save(path, "JPEG")
    path.write_bytes(path.read_bytes()[:900])


def huge(path):
    Image.new("1", (30_000, 30_000)).save(path, "PNG")


@pytest.mark.parametrize("damage", [text, truncated, huge, lambda path: None, Path.mkdir])
def test_project_refuses_what_is_no_picture(run, export_dir, tmp_path, damage):
    path = tmp_path / "picture.jpg"
    damage(path)

    result = run(cli.cli, "project", path, "--model", export_dir, "--layer", "conv1")

    assert_one_line(result, "picture.jpg")


def test_project_works_on_a_single_pixel(run, export_dir, tmp_path):
    Image.new("RGB", (1, 1)).save(tmp_path / "one.png")

    result = run(
        cli.cli, "project", "one.png", "--model", export_dir, "--layer", "conv1", "--top", 2
    )

    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("command", ["project", "demo"])
def test_folders_without_a_model_are_named(run, picture, tmp_path, command):
    (tmp_path / "empty").mkdir()
    arguments = [picture] if command == "project" else []

    result = run(cli.cli, command, *arguments, "--model", tmp_path / "empty")

    assert_one_line(result, "empty holds no exported model")


def test_demo_writes_a_page_whose_pictures_exist(run, export_dir, tmp_path, monkeypatch):
    monkeypatch.setattr("zfkeras.demo.SHOWN_MAPS", 3)

    result = run(cli.cli, "demo", "--model", export_dir, "--output", "demo")

    assert result.exit_code == 0, result.output
    assert result.stdout == "Open demo/index.html in a browser.\n"
    page = (tmp_path / "demo/index.html").read_text()
    sources = [part.split('"')[0] for part in page.split('src="')[1:]]
    assert len(sources) == 1 + 10 * (1 + 3)
    for source in sources:
        with Image.open(tmp_path / "demo" / source) as picture:
            picture.load()
    assert "&lt;b&gt;tench" in page
    assert "<b>tench" not in page


def test_train_exports_what_project_reads(run, picture, tmp_path, monkeypatch):
    monkeypatch.setattr(shapes, "COUNTS", {"train": 16, "validation": 12})

    result = run(
        cli.train,
        *("--dataset", "shapes", "--architecture", "zfnet-small", "--epochs", 1),
        *("--batch-size", 8, "--workdir", "run", "--export", "exported/shapes"),
    )

    assert result.exit_code == 0, result.output
    *_, epoch, exported, last = result.stdout.splitlines()
    assert epoch.startswith("epoch 1/1  loss ")
    assert exported == "Exported to exported/shapes/1"
    assert last.startswith("Top-1 error ")
    assert last.endswith("on 12 validation pictures.")
    assert (tmp_path / "run/metrics.csv").exists()

    again = run(cli.cli, "export", "run", "--output", "exported/shapes")
    projected = run(cli.cli, "project", picture, "--model", "exported/shapes")

    assert again.stdout == "Exported to exported/shapes/2\n"
    cards = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("exported/*/*/*.json"))]
    assert [card["command"] for card in cards] == [
        "zfkeras-train --dataset shapes --architecture zfnet-small --epochs 1 --batch-size 8 "
        "--workdir run --export exported/shapes"
    ] * 2
    assert projected.exit_code == 0, projected.output


def test_the_command_of_a_card_makes_the_same_configuration():
    config = TrainingConfig(
        dataset="my pictures",
        data_dir="there",
        strict=True,
        patience=5,
        decay_factor=0.5,
        cache_gib=1.5,
        jit_compile=True,
        deterministic=True,
        checkpoint_steps=7,
        snapshot_epochs=(1, 3),
        architecture="zfnet-small",
        epochs=3,
        global_batch_size=7,
        learning_rate=0.5,
        schedule="step",
        warmup_steps=2,
        momentum=0.5,
        weight_decay=1e-4,
        label_smoothing=0.2,
        initialization="he",
        filter_rms=0.3,
        crops="random",
        colour_jitter=0.4,
        resize_size=140,
        precision="mixed_bfloat16",
        strategy="mirrored",
        seed=9,
    )
    _, *arguments = shlex.split(training_command(config, "run", "out"))

    options = cli.train.make_context("zfkeras-train", arguments).params

    assert str(options.pop("workdir")) == "run"
    assert str(options.pop("export_dir")) == "out"
    names = {field.name for field in dataclasses.fields(config)}
    assert TrainingConfig(**{name: options[name] for name in names}) == config
    # Every field differs from its default, or the test would pass for a forgotten one.
    for field in dataclasses.fields(config):
        assert getattr(config, field.name) != field.default, field.name


def one_class(folder):
    for split in ("train", "val"):
        (folder / split / "only").mkdir(parents=True)
        Image.new("RGB", (200, 200)).save(folder / split / "only/a.png")


@pytest.mark.parametrize(
    ("fill", "part"),
    [(lambda folder: None, "has no folder train"), (one_class, "single class, 'only'")],
    ids=["empty", "one class"],
)
def test_train_refuses_folders_it_cannot_learn_from(run, tmp_path, fill, part):
    folder = tmp_path / "pictures"
    folder.mkdir()
    fill(folder)

    result = run(cli.train, "--dataset", folder, "--workdir", "run")

    assert_one_line(result, part)


def test_the_configuration_can_be_shown_and_used_again(run, tmp_path):
    arguments = ["--preset", "zfnet-small", "--dataset", "shapes", "--batch-size", 64]

    shown = run(cli.train, *arguments, "--strict", "--print-config")
    (tmp_path / "mine.toml").write_text(shown.stdout)
    again = run(cli.train, "--config", "mine.toml", "--print-config")
    changed = run(cli.train, "--config", "mine.toml", "--no-strict", "--print-config")

    assert shown.exit_code == 0, shown.output
    assert "global_batch_size = 64\n" in shown.stdout
    assert 'architecture = "zfnet-small"\n' in shown.stdout
    assert again.stdout == shown.stdout
    assert changed.stdout == shown.stdout.replace("strict = true", "strict = false")


@pytest.mark.parametrize("missing", ["--dataset", "--workdir"])
def test_train_says_what_is_missing(run, missing):
    arguments = {"--dataset": "shapes", "--workdir": "run"}
    del arguments[missing]

    result = run(cli.train, *(word for pair in arguments.items() for word in pair))

    assert_one_line(result, missing.removeprefix("--"))


def test_evaluate_measures_runs_and_exported_models(run, tmp_path, monkeypatch):
    monkeypatch.setattr(shapes, "COUNTS", {"train": 16, "validation": 12})
    arguments = ["--preset", "zfnet-small", "--dataset", "shapes", "--epochs", 1]
    arguments += ["--batch-size", 8, "--workdir", "run"]
    trained = run(cli.train, *arguments)
    again = run(cli.train, *arguments)

    one = run(cli.cli, "evaluate", "run", "--dataset", "shapes")
    ten = run(
        cli.cli,
        *("evaluate", "run", "run/exported/run", "--dataset", "shapes", "--views", 10),
        *("--output", "out"),
    )

    assert one.exit_code == ten.exit_code == 0, one.output + ten.output
    errors = trained.stdout.splitlines()[-1].split(" on ")[0]
    assert trained.stdout.splitlines()[-2] == "Exported to run/exported/run/1"
    assert again.stdout == trained.stdout.splitlines(keepends=True)[-1]  # Nothing was left to do.
    assert one.stdout == f"{errors} on 12 pictures, 1 view.\n"
    assert ten.stdout.splitlines()[-1].endswith("on 12 pictures, 10 views.")
    facts = json.loads((tmp_path / "out/errors.json").read_text())
    assert facts["models"] == ["run", "run/exported/run"]
    assert (tmp_path / "out/confusion.csv").read_text().startswith("class,face,car,")
    with Image.open(tmp_path / "out/confusion.png") as picture:
        assert min(picture.size) > 300


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("--dataset", "shapes"), ("classes face, car", "Expected those of", "gas pump")),
        (("--dataset", "nothing"), ("'nothing'",)),
        (("--dataset", "shapes", "--views", "3"), ("views", "3")),
        (("--dataset", "shapes", "--split", "dev"), ("'dev'",)),
    ],
)
def test_evaluate_names_what_is_wrong(run, export_dir, arguments, parts):
    assert_one_line(run(cli.cli, "evaluate", export_dir, *arguments), *parts)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--architecture", "vgg"),
        ("--schedule", "never"),
        ("--epochs", "0"),
        ("--epochs", "many"),
        ("--strategy", "x"),
        ("--preset", "vgg"),
        ("--config", "nothing.toml"),
        ("--snapshot-epochs", "1,a"),
    ],
)
def test_train_names_what_it_does_not_know(run, option, value):
    result = run(cli.train, "--dataset", "shapes", "--workdir", "run", option, value)

    assert_one_line(result, value)


def test_commands_say_nothing_but_their_result(export_dir, picture, tmp_path):
    """In a process of its own: TensorFlow's reports come from its C++ part."""
    arguments = ["project", picture, "--model", export_dir, "--layer", "conv1", "--top", "1"]

    finished = subprocess.run(
        [sys.executable, "-m", "zfkeras", *map(str, arguments), "--output", tmp_path / "a.png"],
        capture_output=True,
        text=True,
        check=True,
    )

    assert len(finished.stdout.splitlines()) == 2
    assert finished.stderr == ""


def test_too_little_memory_and_tensorflow_s_errors_are_one_line():
    @click.command(cls=OneLineCommand)
    @click.argument("kind")
    @one_line_errors
    def fail(kind):
        if kind == "memory":
            raise MemoryError("Unable to allocate 3 TiB.")
        tf.constant([1, 2]) + tf.constant([1, 2, 3])

    messages = {"memory": "There is too little memory. Unable", "tensorflow": "shape"}
    for kind, message in messages.items():
        result = CliRunner().invoke(fail, [kind])
        assert result.exit_code == 2
        assert message in result.output and len(result.output.splitlines()) == 1
