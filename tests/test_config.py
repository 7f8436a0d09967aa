import dataclasses
import math

import pytest

from zfkeras.training.config import PRESETS, ConfigError, TrainingConfig


def test_defaults_are_the_papers():
    config = TrainingConfig.load(dataset="imagenet2012")

    assert (
        config
        == TrainingConfig("imagenet2012")
        == TrainingConfig.load(None, "zfnet", **{"dataset": "imagenet2012"})
    )
    assert (config.epochs, config.global_batch_size, config.side) == (70, 128, 256)
    assert (config.learning_rate, config.momentum, config.filter_rms) == (0.01, 0.9, 0.1)
    assert (config.crops, config.schedule, config.weight_decay) == ("ten", "plateau", 0)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_a_configuration_for_an_architecture_of_its_name(preset):
    assert TrainingConfig.load(preset=preset, dataset="shapes").architecture == preset


def test_toml_holds_every_setting(tmp_path):
    config = TrainingConfig.load(
        preset="zfnet-small",
        dataset='my "pictures"',
        data_dir="there",
        strict=True,
        snapshot_epochs=(3, 7),
        learning_rate=1e-7,
    )
    (tmp_path / "config.toml").write_text(config.to_toml())

    assert TrainingConfig.load(tmp_path / "config.toml") == config


def test_a_file_changes_a_preset_and_arguments_change_a_file(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('preset = "alexnet"\ndataset = "shapes"\nepochs = 5\nmomentum = 0\n')

    from_file = TrainingConfig.load(path)
    changed = TrainingConfig.load(path, "zfnet-small", epochs=6)

    assert (from_file.architecture, from_file.crops) == ("alexnet", "random")
    assert (from_file.epochs, from_file.momentum) == (5, 0.0)
    assert (changed.architecture, changed.epochs, changed.momentum) == ("zfnet-small", 6, 0.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('dataset = "shapes"\nepoch = 3\n', "mine.toml has an unknown setting 'epoch'. Known: dat"),
        ('dataset = "shapes"\npreset = "vgg"\n', "`preset` must be one of zfnet, .*'vgg'"),
        ("epochs = 3\n", "`dataset` is missing"),
        ("epochs = \n", "mine.toml cannot be read as a TOML file"),
        ('dataset = "shapes"\nepochs = "3"\n', "`epochs` must be a int. Received: epochs='3'"),
        ('dataset = "shapes"\nepochs = true\n', "`epochs`"),
        ('dataset = "shapes"\nsnapshot_epochs = 3\n', "`snapshot_epochs` must be whole numbers"),
        ('dataset = "shapes"\nsnapshot_epochs = [1.5]\n', "`snapshot_epochs`"),
    ],
)
def test_wrong_files_are_refused(tmp_path, text, message):
    path = tmp_path / "mine.toml"
    path.write_text(text)

    with pytest.raises(ConfigError, match=message):
        TrainingConfig.load(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match="nothing.toml cannot be read"):
        TrainingConfig.load(tmp_path / "nothing.toml")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"architecture": "vgg"}, "`architecture` must be one of zfnet, .*'vgg'"),
        ({"schedule": "never"}, "`schedule`"),
        ({"crops": "two"}, "`crops`"),
        ({"initialization": "zeros"}, "`initialization`"),
        ({"precision": "int8"}, "`precision`"),
        ({"strategy": "tpu"}, "`strategy`"),
        ({"epochs": 0}, "`epochs` must be at least 1"),
        ({"learning_rate": math.nan}, "`learning_rate` must be above 0"),
        ({"learning_rate": math.inf}, "`learning_rate` must be a finite number"),
        ({"momentum": 2}, "`momentum` must be below 1"),
        ({"label_smoothing": 1}, "`label_smoothing`"),
        ({"weight_decay": -1}, "`weight_decay` must be at least 0"),
        ({"warmup_steps": -5}, "`warmup_steps`"),
        ({"seed": -1}, "`seed`"),
        ({"decay_factor": 1.0}, "`decay_factor`"),
        ({"resize_size": 100}, "at least the input of the architecture, 224"),
    ],
)
def test_values_out_of_range_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        TrainingConfig("shapes", **options)


def test_every_setting_explains_itself():
    for field in dataclasses.fields(TrainingConfig):
        assert field.metadata["help"].endswith(".")
