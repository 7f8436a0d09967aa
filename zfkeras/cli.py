"""The commands `zfkeras` and `zfkeras-train`.

Commands parse, call the library, write, and say one line. TensorFlow and what needs it are
imported inside them: that takes seconds, and `--help` should be instant.
"""

import dataclasses
import functools
import os
import shlex
import sys
from pathlib import Path

import click

from zfkeras import __version__

EXAMPLE_MODEL = Path("exported/zfnet-imagenette")


def import_tensorflow():
    """Imports TensorFlow without its report of build options, which no user asked for.

    The report is written by its C++ part before any setting of ours is read, so standard error is
    turned away for as long as the import takes. What fails still raises.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        import tensorflow  # noqa: F401
    finally:
        os.dup2(kept, 2)
        os.close(kept)


class OneLineError(click.ClickException):
    """What was wrong with the input, without the usage that click shows for a wrong option."""

    exit_code = 2


def one_line_errors(command):
    """Turns the library's errors into one line with exit code 2 and no traceback."""

    @functools.wraps(command)
    def guarded(*args, **kwargs):
        try:
            return command(*args, **kwargs)
        except click.BadParameter as error:
            raise OneLineError(error.format_message()) from error
        except (ValueError, OSError) as error:
            raise OneLineError(" ".join(str(error).split())) from error

    return guarded


model_option = click.option(
    "--model",
    "model_dir",
    type=click.Path(path_type=Path),
    default=EXAMPLE_MODEL,
    show_default=True,
    help="Exported model: its folder, or that of one version.",
)


def output_option(default, help):
    return click.option(
        "--output",
        type=click.Path(path_type=Path),
        default=default,
        show_default=True,
        help=help,
    )


def training_command(config, workdir, export_dir):
    """The `zfkeras-train` command line of a configuration, defaults left out."""
    words = ["zfkeras-train"]
    options = {"global_batch_size": "--batch-size", "precision": "--mixed-precision"}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if value != field.default:
            option = options.get(field.name, f"--{field.name.replace('_', '-')}")
            words += [option, str(value)]
    return shlex.join([*words, "--workdir", str(workdir), "--export", str(export_dir)])


@click.group()
@click.version_option(__version__)
def cli():
    """See what convolutional networks learn (Zeiler & Fergus, 2014)."""


@cli.command()
@click.argument("picture", type=click.Path(path_type=Path))
@model_option
@click.option("--layer", default="conv5", show_default=True, help="Layer to project from.")
@click.option(
    "--top",
    type=int,
    default=9,
    show_default=True,
    help="How many of the layer's strongest feature maps to project.",
)
@click.option(
    "--feature-map",
    "feature_maps",
    type=int,
    multiple=True,
    help="Feature map to project instead of the strongest; may be repeated.",
)
@output_option("sheet.png", help="Contact sheet: projections left, patches right.")
@click.option(
    "--numbers",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Also save the numbers to this .npz file.",
)
@one_line_errors
def project(picture, model_dir, layer, top, feature_maps, output, numbers):
    """Project what PICTURE excites in a layer back to pixel space.

    \b
    Example:
        zfkeras project tabby.jpg --layer conv3 --top 4 --output tabby.png
    """
    from zfkeras import rendering
    from zfkeras.data.pictures import read_picture

    rendering.require_image_path(output)
    if numbers and numbers.suffix != ".npz":
        raise click.BadParameter(
            f"Expected a .npz file. Received: {numbers}.", param_hint="--numbers"
        )
    pixels = read_picture(picture)
    import_tensorflow()
    from zfkeras import export
    from zfkeras.writing import replacing

    model = export.load(model_dir)
    if layer not in model.feature_layers:
        raise click.BadParameter(
            f"{layer!r} is not one of {', '.join(model.feature_layers)}.", param_hint="--layer"
        )
    count = model.feature_map_count(layer)
    for feature_map in feature_maps:
        if not 0 <= feature_map < count:
            raise click.BadParameter(
                f"{layer} has feature maps 0 to {count - 1}. Received: {feature_map}.",
                param_hint="--feature-map",
            )
    if not feature_maps and not 1 <= top <= count:
        raise click.BadParameter(
            f"Expected 1 to {count} of {layer}'s {count} feature maps. Received: {top}.",
            param_hint="--top",
        )
    probabilities = model.classify(pixels)
    chosen = feature_maps or range(-1, -top - 1, -1)
    projections, seen = model.project(pixels, layer, chosen)
    sheet = rendering.projection_sheet(projections.projections, projections.windows, seen)
    rendering.save(sheet, output)
    if numbers:
        with replacing(numbers) as beside:
            projections.save(beside, picture=seen)
    best = int(probabilities.argmax())
    click.echo(f"{model.class_names[best]} ({probabilities[best]:.1%})")
    click.echo(f"Wrote {len(projections)} projections of {layer} to {output}")


@cli.command()
@model_option
@output_option("demo", help="Folder to write to.")
@one_line_errors
def demo(model_dir, output):
    """Show what a model sees in photographs that are installed with zfkeras."""
    import_tensorflow()
    from tqdm import tqdm

    from zfkeras import demo, export
    from zfkeras.data import samples

    model = export.load(model_dir)
    with tqdm(total=len(samples.NAMES), disable=not sys.stderr.isatty()) as bar:
        page = demo.write(model, output, report=lambda name: bar.update())
    click.echo(f"Open {page} in a browser.")


@cli.command("export")
@click.argument("workdir", type=click.Path(path_type=Path))
@output_option("exported/zfnet", help="Folder of the model's versions.")
@one_line_errors
def export_run(workdir, output):
    """Export the last checkpoint of the training run in WORKDIR as a SavedModel."""
    import_tensorflow()
    from zfkeras import export
    from zfkeras.training.loop import load_run

    run = load_run(workdir)
    version = export.save(run, output, training_command(run.config, workdir, output))
    click.echo(f"Exported to {version}")


@click.command()
@click.option(
    "--dataset",
    required=True,
    help="Folder with train/<class>/ and val/<class>/, tensorflow-datasets name, or 'shapes'.",
)
@click.option("--data-dir", help="Where tensorflow-datasets keeps its data sets.")
@click.option("--architecture", default="zfnet", show_default=True, help="Network to train.")
@click.option("--epochs", type=int, default=70, show_default=True)
@click.option("--batch-size", type=int, default=128, show_default=True, help="Over all replicas.")
@click.option("--learning-rate", type=float, default=0.01, show_default=True)
@click.option(
    "--schedule", default="plateau", show_default=True, help="plateau, step, cosine or constant."
)
@click.option(
    "--warmup-steps", type=int, default=0, show_default=True, help="Updates of linear warm-up."
)
@click.option("--momentum", type=float, default=0.9, show_default=True)
@click.option("--weight-decay", type=float, default=0.0, show_default=True)
@click.option("--label-smoothing", type=float, default=0.0, show_default=True)
@click.option(
    "--initialization", default="paper", show_default=True, help="paper: N(0, 0.01); or he."
)
@click.option(
    "--filter-rms", type=float, default=0.1, show_default=True, help="RMS cap on filters."
)
@click.option(
    "--crops", default="ten", show_default=True, help="ten (paper), random, scaled or centre."
)
@click.option(
    "--colour-jitter",
    type=click.FloatRange(0, 1),
    default=0.0,
    show_default=True,
    help="Share by which brightness, contrast and saturation vary.",
)
@click.option("--resize-size", type=int, help="Square before cropping [default: 256/224 of input].")
@click.option(
    "--mixed-precision",
    "precision",
    default="float32",
    show_default=True,
    help="float32, mixed_bfloat16 or mixed_float16.",
)
@click.option("--strategy", default="default", show_default=True, help="default or mirrored.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option(
    "--workdir",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="Directory of the run; a second start with the same one goes on.",
)
@click.option(
    "--export",
    "export_dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Export the trained model into this folder, as its next version.",
)
@one_line_errors
def train(workdir, export_dir, batch_size, **options):
    """Train a network with the paper's recipe.

    \b
    Example:
        zfkeras-train --dataset shapes --architecture zfnet-small --epochs 5 \\
            --batch-size 64 --initialization he --workdir runs/shapes
    """
    import_tensorflow()
    from zfkeras import export
    from zfkeras.training.config import TrainingConfig
    from zfkeras.training.loop import train

    config = TrainingConfig(global_batch_size=batch_size, **options)

    def say(row):
        click.echo(
            f"epoch {row['epoch']}/{config.epochs}  loss {row['loss']:.3f}  "
            f"training top-1 error {row['training_top1_error']:.1%}  "
            f"validation top-1 error {row['validation_top1_error']:.1%}  "
            f"{row['images_per_second']:.0f} images/s"
        )

    run = train(config, workdir, on_epoch=say, progress=sys.stderr.isatty())
    if export_dir:
        version = export.save(run, export_dir, training_command(config, workdir, export_dir))
        click.echo(f"Exported to {version}")
    click.echo(
        f"Top-1 error {run.errors.top1:.2%}, top-5 error {run.errors.top5:.2%} "
        f"on {run.errors.count} validation pictures."
    )
