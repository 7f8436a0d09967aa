"""`zfkeras export`: a training run as a SavedModel."""

from pathlib import Path

import click

from zfkeras.cli.errors import OneLineCommand, one_line_errors
from zfkeras.cli.options import output_option
from zfkeras.cli.startup import import_tensorflow
from zfkeras.cli.train import training_command


@click.command("export", cls=OneLineCommand)
@click.argument("workdir", type=click.Path(path_type=Path))
@output_option("exported/zfnet", help="Folder of the model's versions.")
@one_line_errors
def export_run(workdir, output):
    """Export the last checkpoint of the training run in WORKDIR as a SavedModel."""
    import_tensorflow()
    from zfkeras import export
    from zfkeras.training.run import load_run

    run = load_run(workdir)
    version = export.save(run, output, training_command(run.config, workdir, output))
    click.echo(f"Exported to {version}")
