"""The commands `zfkeras` and `zfkeras-train`.

Commands parse, call the library, write, and say one line. TensorFlow and what needs it are
imported inside them: that takes seconds, and `--help` should be instant.
"""

import functools
import os
import sys
from pathlib import Path

import click

from zfkeras import __version__

EXAMPLE_MODEL = Path("exported/zfnet-imagenette")

# TensorFlow reports its build options on every start, which no user of a command asked for.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def one_line_errors(command):
    """Turns the library's errors into usage errors: one line, exit code 2, no traceback."""

    @functools.wraps(command)
    def guarded(*args, **kwargs):
        try:
            return command(*args, **kwargs)
        except (ValueError, OSError) as error:
            raise click.UsageError(" ".join(str(error).split())) from error

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


@click.group()
@click.version_option(__version__)
def cli():
    """See what convolutional networks learn (Zeiler & Fergus, 2014)."""


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
    from zfkeras import export  # Deferred: keeps --help instant.
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
        command = " ".join(["zfkeras-train", *sys.argv[1:]])
        version = export.save(run, export_dir, command)
        click.echo(f"Exported to {version}")
    click.echo(
        f"Top-1 error {run.errors.top1:.2%}, top-5 error {run.errors.top5:.2%} "
        f"on {run.errors.count} validation pictures."
    )
