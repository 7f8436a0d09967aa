"""Options that several commands have."""

from pathlib import Path

import click

EXAMPLE_MODEL = Path("exported/zfnet-imagenette")

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
        show_default=default is not None,
        help=help,
    )
