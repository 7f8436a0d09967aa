"""`zfkeras evolution`: how what excites a feature map changes through training."""

from pathlib import Path

import click

from zfkeras.cli.errors import OneLineCommand, one_line_errors
from zfkeras.cli.options import dataset_options, layers_option, numbers
from zfkeras.cli.progress import Stages
from zfkeras.cli.startup import import_tensorflow


@click.command(cls=OneLineCommand)
@click.argument("run_dir", type=click.Path(path_type=Path))
@dataset_options("train")
@click.option(
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    help="Folder of the figures and numbers; a second start with the same one goes on.",
)
@layers_option()
@click.option("--maps", metavar="N,N,...", callback=numbers, help="These feature maps.  [random]")
@click.option(
    "--count",
    type=click.IntRange(1),
    default=6,
    show_default=True,
    help="How many random maps of each layer.",
)
@click.option("--seed", default=0, show_default=True, help="Decides which.")
@click.option("--batch-size", type=click.IntRange(1), default=32, show_default=True)
@one_line_errors
def evolution(run_dir, dataset, data_dir, split, output, layers, maps, count, seed, batch_size):
    """Follow feature maps through the snapshots of a training run: Figure 4.

    \b
    Example:
        zfkeras evolution runs/shapes --dataset shapes --output evolution
    """
    import_tensorflow()
    from zfkeras import evolution as evolutions
    from zfkeras.data import datasets
    from zfkeras.training.run import load_run, load_snapshots

    run = load_run(run_dir)
    counts = run.model.architecture.feature_map_counts()
    names = list(counts) if layers is None else layers
    unknown = [name for name in names if name not in counts]
    if unknown:
        raise ValueError(f"Expected layers of {', '.join(counts)}. Received: {', '.join(unknown)}.")
    if maps is None:
        chosen = evolutions.choose_maps(counts, count, seed)
    else:
        chosen = dict.fromkeys(names, maps)
    pictures = datasets.load(dataset, split, len(run.mean_image), data_dir)
    with Stages() as show:
        _, epochs = evolutions.make(
            load_snapshots(run_dir),
            run.mean_image,
            run.class_names,
            pictures,
            output,
            names,
            chosen,
            batch_size,
            show,
        )
    click.echo(
        f"Wrote evolution.csv and a figure for each of {', '.join(names)} to {output}, "
        f"epochs {', '.join(map(str, epochs))}."
    )
