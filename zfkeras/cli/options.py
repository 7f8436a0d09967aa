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


def numbers(context, parameter, value):
    """Callback of an option that takes whole numbers with commas between them."""
    if value is None:
        return None
    try:
        return [int(number) for number in value.split(",") if number.strip()]
    except ValueError as error:
        raise click.BadParameter(f"Expected numbers such as 0,7,12. Received: {value}.") from error
