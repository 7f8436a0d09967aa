"""`zfkeras-train`: training with the paper's recipe, or another."""

import dataclasses
import shlex
import sys
from pathlib import Path

import click

from zfkeras.cli.errors import OneLineCommand, one_line_errors
from zfkeras.cli.options import numbers
from zfkeras.cli.startup import import_tensorflow
from zfkeras.training.config import PRESETS, TrainingConfig, value_type


def _option(field):
    return field.metadata.get("option", f"--{field.name.replace('_', '-')}")


def config_options(command):
    """Gives a command an option for every field of `TrainingConfig`."""
    for field in reversed(dataclasses.fields(TrainingConfig)):
        kind, name = value_type(field), _option(field)
        default = "" if field.default in (dataclasses.MISSING, None) else str(field.default)
        more = {"type": kind}
        if kind is bool:
            more, name, default = {"is_flag": True}, f"{name}/--no-{name.removeprefix('--')}", ""
        elif kind is tuple:
            default = ",".join(map(str, field.default))
            more = {"callback": numbers, "metavar": "N,N,..."}
        elif "choices" in field.metadata:
            # Not `click.Choice`: the library names what it does not know, also in files.
            more["metavar"] = "|".join(field.metadata["choices"])
        text = field.metadata["help"] + (f"  [zfnet: {default}]" if default else "")
        # No default here: what is not given must not hide what a preset or a file says.
        command = click.option(name, field.name, default=None, help=text, **more)(command)
    return command


def training_command(config, workdir, export_dir=None):
    """The `zfkeras-train` command line of a configuration, defaults left out."""
    words = ["zfkeras-train"]
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if value == field.default:
            continue
        if value is True:
            words.append(_option(field))
        elif isinstance(value, tuple):
            words += [_option(field), ",".join(map(str, value))]
        else:
            words += [_option(field), str(value)]
    words += ["--workdir", str(workdir)]
    return shlex.join(words if export_dir is None else [*words, "--export", str(export_dir)])


@click.command(cls=OneLineCommand)
@config_options
@click.option(
    "--preset",
    metavar="|".join(PRESETS),
    help="Recipe to start from; files and options change it.  [zfnet, the paper's]",
)
@click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path),
    help="TOML file with any of these settings, as --print-config shows them.",
)
@click.option("--print-config", is_flag=True, help="Show the configuration and do nothing.")
@click.option(
    "--workdir",
    type=click.Path(path_type=Path),
    help="Directory of the run; a second start with the same one goes on.",
)
@click.option(
    "--export",
    "export_dir",
    type=click.Path(path_type=Path),
    help="Folder that the trained model is exported into, as its next version.  "
    "[WORKDIR/exported/NAME]",
)
@one_line_errors
def train(preset, config_file, print_config, workdir, export_dir, **options):
    """Train a network with the paper's recipe.

    \b
    Examples:
        zfkeras-train --preset zfnet-small --dataset shapes --epochs 8 --workdir runs/shapes
        zfkeras-train --dataset imagenet2012 --strategy mirrored --workdir runs/zfnet
    """
    changes = {name: value for name, value in options.items() if value is not None}
    config = TrainingConfig.load(config_file, preset, **changes)
    if print_config:
        click.echo(config.to_toml(), nl=False)
        return
    if workdir is None:
        raise click.BadParameter("Expected a directory for the run.", param_hint="--workdir")
    import_tensorflow()
    from zfkeras import export
    from zfkeras.training import loop, run

    epochs_run = []

    def say(row):
        epochs_run.append(row)
        click.echo(
            f"epoch {row['epoch']}/{config.epochs}  loss {row['loss']:.3f}  "
            f"training error {row['training_top1_error']:.1%}  "
            f"validation error {row['validation_top1_error']:.1%}  "
            f"{row['images_per_second']:.0f} images/s"
        )

    try:
        trained = loop.train(config, workdir, on_epoch=say, progress=sys.stderr.isatty())
    except loop.TrainingStopped as stopped:
        click.echo(str(stopped))
        # As a shell reports a process that the signal ended.
        sys.exit(128 + (stopped.signal_number or 15))
    for split, facts in run.RunDirectory(workdir).read_dataset().items():
        if split != "class_names" and facts["unreadable"]:
            click.echo(
                f"{len(facts['unreadable'])} {split} pictures cannot be read and were left out; "
                f"they are listed in {workdir / run.DATASET}."
            )
    place = export_dir or workdir / "exported" / workdir.resolve().name
    if trained.chief and (epochs_run or not place.exists()):
        version = export.save(trained, place, training_command(config, workdir, export_dir))
        click.echo(f"Exported to {version}")
    click.echo(
        f"Top-1 error {trained.errors.top1:.2%}, top-5 error {trained.errors.top5:.2%} "
        f"on {trained.errors.count} validation pictures."
    )
