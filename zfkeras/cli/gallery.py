"""`zfkeras gallery`: what every feature map of a network looks for."""

from pathlib import Path

import click

from zfkeras.choices import STRATEGIES
from zfkeras.cli.errors import OneLineCommand, one_line_errors
from zfkeras.cli.options import dataset_options, keras_file_options, layers_option, numbers
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
@layers_option()
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
    type=click.Choice(STRATEGIES),
    default="default",
    show_default=True,
)
@keras_file_options
@one_line_errors
def gallery(
    model,
    dataset,
    data_dir,
    split,
    output,
    layers,
    top,
    repeats,
    maps,
    batch_size,
    strategy,
    preprocessing,
    input_size,
):
    """Show what every feature map of MODEL looks for: Figure 2 of a whole network.

    MODEL is a training run, an exported model or a .keras file. The data set may also be a folder
    of pictures without classes.

    \b
    Example:
        zfkeras gallery exported/zfnet-imagenette --dataset shapes --output gallery
        zfkeras gallery vgg16.keras --preprocessing caffe --dataset photos --output gallery
    """
    import_tensorflow()
    from zfkeras import gallery as galleries
    from zfkeras import trained as networks
    from zfkeras.data import datasets

    if Path(dataset).is_dir() and output.resolve().is_relative_to(Path(dataset).resolve()):
        # Its sheets would be pictures of the data set.
        raise ValueError(f"{output} lies in the folder of the data set. Expected another place.")
    trained = networks.load(model, preprocessing, input_size)
    side = len(trained.mean_image)
    pictures = datasets.load(dataset, split, side, data_dir, labelled=False)
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
    page = output / "index.html"
    click.echo(f"Wrote {page}" if page.exists() else f"Did its part; worker 1 writes {page}")
