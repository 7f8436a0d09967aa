"""`zfkeras occlusion`: what a square over each part of a picture changes."""

from pathlib import Path

import click
import numpy as np

from zfkeras.cli.errors import OneLineCommand, one_line_errors
from zfkeras.cli.options import (
    class_numbers,
    keras_file_options,
    labels_option,
    model_option,
    names_of_results,
    output_option,
    word_or_colour,
)
from zfkeras.cli.progress import Stages
from zfkeras.cli.startup import import_tensorflow

# As in Figure 7: the map's projection from so many other pictures, that of this one framed.
OTHERS, FRAME = 3, 3


@click.command(cls=OneLineCommand)
@click.argument("pictures", nargs=-1, required=True, type=click.Path(path_type=Path))
@model_option("Training run, exported model or .keras file.")
@click.option("--layer", help="Layer whose strongest map is watched.  [the highest]")
@click.option("--size", type=int, help="Side of the square in pixels.  [50 of 224]")
@click.option("--stride", type=int, help="Pixels from one square to the next.  [6 of 224]")
@click.option(
    "--value",
    default="gray",
    show_default=True,
    callback=word_or_colour,
    help="What the square shows: gray, mean, blur or R,G,B from 0 to 255.",
)
@labels_option
@click.option(
    "--cover/--no-cover", default=True, help="Whether the last square ends at the border."
)
@click.option("--batch-size", type=click.IntRange(1), default=32, show_default=True)
@output_option("occlusion", help="Folder for a figure and the numbers of every picture.")
@keras_file_options
@one_line_errors
def occlusion(
    pictures,
    model_path,
    layer,
    size,
    stride,
    value,
    labels,
    cover,
    batch_size,
    output,
    preprocessing,
    input_size,
):
    """Slide a square over PICTURES and see what the network makes of them: Figure 7.

    \b
    Example:
        zfkeras occlusion dog.jpg --label tench --output occlusion
    """
    import_tensorflow()
    from zfkeras import occlusion as occlusions
    from zfkeras import plots, rendering, trained
    from zfkeras.data.images import centre_crop, fill_of
    from zfkeras.data.pictures import read_picture

    pixels = [read_picture(path) for path in pictures]
    network = trained.load(model_path, preprocessing, input_size)
    deconvnet = network.deconvnet()
    extent = deconvnet.input_shape[:2]
    occluder = occlusions.Occluder(network, layer, size, stride, cover)
    names = occluder.names
    chosen = class_numbers(labels, names, len(pictures))
    mean_image = centre_crop(network.mean_image, extent)
    prepared = [network.prepare(picture, extent) for picture in pixels]
    strengths = np.concatenate([_strengths(deconvnet, inputs, occluder) for _, inputs in prepared])
    with Stages() as show:
        for index, (path, name) in enumerate(
            zip(pictures, names_of_results(pictures), strict=True)
        ):
            seen, inputs = prepared[index]
            fill = fill_of(value, seen, mean_image, occluder.size) - mean_image
            done = 0

            def on_batch(count, name=name):
                nonlocal done
                done += count
                show(name, done, occluder.count)

            found = occluder(inputs[0], fill, chosen[index], batch_size, on_batch)
            strength = strengths[:, found.feature_map]
            others = [other for other in np.argsort(-strength) if other != index][:OTHERS]
            shown = [index, *(other for other in others if strength[other] > 0)]
            projections = deconvnet.project_feature_maps(
                np.concatenate([prepared[one][1] for one in shown]),
                found.layer,
                np.full(len(shown), found.feature_map),
            )
            tiles = [rendering.draw_signed(one) for one in projections.projections]
            if others:
                tiles[0] = rendering.outline(tiles[0], (0, 0, *extent), (0, 0, 0), FRAME)
            found.save(output / f"{name}.npz")
            figure = plots.occlusion(found, seen, rendering.contact_sheet(tiles), names)
            plots.save(figure, output / f"{name}.png")
            lowest = found.probabilities[..., found.label]
            row, column = (int(one) for one in divmod(lowest.argmin(), lowest.shape[1]))
            click.echo(
                f"{path}: {names[found.label]} "
                f"{found.unoccluded_probabilities[found.label]:.1%}, down to {lowest.min():.1%} "
                f"with the square at row {found.rows[row]}, column {found.columns[column]}"
            )
    click.echo(f"Wrote a figure and the numbers of {len(pictures)} pictures to {output}")


def _strengths(deconvnet, inputs, occluder):
    """The strongest activation of every map of the layer, `(1, maps)`."""
    maps = deconvnet.rectified_maps(inputs, [occluder.layer])[occluder.layer]
    return maps.numpy().max(axis=(1, 2))
