"""`zfkeras correspondence`: whether a network knows that parts of different pictures are alike."""

from pathlib import Path

import click
import numpy as np

from zfkeras.cli.errors import OneLineCommand, one_line_errors
from zfkeras.cli.options import (
    keras_file_options,
    layers_option,
    model_option,
    output_option,
    prepare_output,
    word_or_colour,
)
from zfkeras.cli.progress import Stages
from zfkeras.cli.startup import import_tensorflow

MOST_DRAWS = 1000


@click.command(cls=OneLineCommand)
@model_option("Training run, exported model or .keras file.")
@click.option(
    "--parts",
    "parts_file",
    required=True,
    type=click.Path(path_type=Path),
    help="A .csv file with the columns picture, part, row, column, height, width, in pixels.",
)
@click.option(
    "--pictures",
    "folder",
    type=click.Path(path_type=Path),
    help="Folder that the names of pictures start from.  [that of the parts]",
)
@layers_option("the last with maps and the last")
@click.option(
    "--value",
    default="gray",
    show_default=True,
    callback=word_or_colour,
    help="What the masks show: gray, mean, blur or R,G,B from 0 to 255.",
)
@click.option(
    "--draws",
    type=click.IntRange(0, MOST_DRAWS),
    default=10,
    show_default=True,
    help="Random masks to every part of every picture.",
)
@click.option("--seed", default=0, show_default=True, help="Decides where they lie.")
@click.option("--batch-size", type=click.IntRange(1), default=32, show_default=True)
@output_option("correspondence", help="Folder for the numbers and a sheet of the masks.")
@keras_file_options
@one_line_errors
def correspondence(
    model_path,
    parts_file,
    folder,
    layers,
    value,
    draws,
    seed,
    batch_size,
    output,
    preprocessing,
    input_size,
):
    """Mask parts of pictures and compare what changes: Table 1.

    \b
    Example:
        zfkeras correspondence --parts dog_parts.csv --pictures dogs --output correspondence
    """
    import_tensorflow()
    from zfkeras import correspondence as correspondences
    from zfkeras import rendering, trained
    from zfkeras.data.pictures import read_picture

    parts = correspondences.read_parts(parts_file)
    folder = parts_file.parent if folder is None else folder
    pictures = {folder / one.picture for one in parts}
    prepare_output(output, ("correspondence.csv", "masks.png"), (parts_file, *pictures))
    network = trained.load(model_path, preprocessing, input_size)
    probe = correspondences.CorrespondenceProbe(network, layers or ("last_maps", "last"), value)
    seen, boxes = probe.look(parts, lambda name: read_picture(folder / name))
    tiles = [
        probe.masked(picture, places[name]).round().astype(np.uint8)
        if name in places
        else np.full_like(picture, rendering.BACKGROUND)
        for name, picture in seen.items()
        for places in boxes.values()
    ]
    rendering.save(rendering.contact_sheet(tiles, len(boxes)), output / "masks.png")
    with Stages() as show:
        found = probe(
            seen,
            boxes,
            draws,
            seed,
            batch_size,
            lambda done, total: show("pictures", done, total),
        )
    correspondences.save_table(found, output / "correspondence.csv")
    for line in correspondences.table(found):
        click.echo(line)
    click.echo(f"Wrote correspondence.csv and masks.png to {output}")
