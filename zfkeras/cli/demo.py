"""`zfkeras demo`: a page of projections of photographs that are installed with zfkeras."""

import sys

import click

from zfkeras.cli.errors import OneLineCommand, one_line_errors
from zfkeras.cli.options import model_option, output_option
from zfkeras.cli.startup import import_tensorflow


@click.command(cls=OneLineCommand)
@model_option("Exported model: its folder, or that of one version.")
@output_option("demo", help="Folder to write to.")
@one_line_errors
def demo(model_path, output):
    """Show what a model sees in photographs that are installed with zfkeras."""
    import_tensorflow()
    from tqdm import tqdm

    from zfkeras import demo, export
    from zfkeras.data import samples

    model = export.load(model_path)
    with tqdm(total=len(samples.NAMES), disable=not sys.stderr.isatty()) as bar:
        page = demo.write(model, output, report=lambda name: bar.update())
    click.echo(f"Open {page} in a browser.")
