"""`zfkeras gallery`: what every feature map of a network looks for."""

from pathlib import Path

import click

from zfkeras.choices import STRATEGIES
from zfkeras.cli.errors import OneLineCommand, one_line_errors
from zfkeras.cli.options import dataset_options, layers_option, numbers
from zfkeras.cli.progress import Stages
from zfkeras.cli.startup import import_tensorflow


@click.command(cls=OneLineCommand)
@click.argument("model", type=click.Path(path_type=Path))
@dataset_options("validation")
@click.option(
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    help="Folder of the gallery; a second start with the same one goes on.",
)
@layers_option
@click.option("--top", type=click.IntRange(1), default=9, show_default=True, help="Of each map.")
@click.option(
    "--repeats",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="How many of them may be of one picture.",
)
@click.option("--maps", metavar="N,N,...", callback=numbers, help="Only these feature maps.  [all]")
@click.option("--batch-size", type=click.IntRange(1), default=32, show_default=True)
@click.option(
    "--strategy",
    type=click.Choice([name for name in STRATEGIES if name != "multi_worker_mirrored"]),
    default="default",
    show_default=True,
)
@one_line_errors
def gallery(
    model, dataset, data_dir, split, output, layers, top, repeats, maps, batch_size, strategy
):
    """Show what every feature map of MODEL looks for: Figure 2 of a whole network.

    MODEL is a training run or an exported model.

    \b
    Example:
        zfkeras gallery exported/zfnet-imagenette --dataset shapes --output gallery
    """
    import_tensorflow()
    from zfkeras import export
    from zfkeras import gallery as galleries
    from zfkeras.data import datasets

    trained = export.load_trained(model)
    pictures = datasets.load(dataset, split, len(trained.mean_image), data_dir)
    with Stages() as show:
        made = galleries.make(
            trained,
            pictures,
            output,
            layers,
            top,
            repeats,
            maps,
            batch_size,
            strategy,
            show,
        )
    if made["unreadable"]:
        click.echo(
            f"{len(made['unreadable'])} pictures cannot be read and were left out; "
            f"they are listed in {output / galleries.SETTINGS}."
        )
    click.echo(f"Wrote {output / 'index.html'}")
