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
    prepare_output,
    word_or_colour,
)
from zfkeras.cli.progress import Stages
from zfkeras.cli.startup import import_tensorflow

# As in Figure 7: the map's projection from so many other pictures, that of this one framed.
OTHERS, FRAME, BLACK = 3, 3, (0, 0, 0)


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

    Started again with the same settings, it goes on with the pictures that are not done.

    \b
    Example:
        zfkeras occlusion dog.jpg --label tench --output occlusion
    """
    import_tensorflow()
    from zfkeras import occlusion as occlusions
    from zfkeras import plots, rendering, trained
    from zfkeras.data.images import centre_crop
    from zfkeras.data.pictures import read_picture

    titles = names_of_results(pictures)
    prepare_output(output, [f"{one}.{end}" for one in titles for end in ("npz", "png")], pictures)
    network = trained.load(model_path, preprocessing, input_size)
    occluder = occlusions.Occluder(network, layer, size, stride, cover)
    names = occluder.names
    chosen = class_numbers(labels, names, len(pictures))
    mean_image = centre_crop(network.mean_image, occluder.extent)
    # Pictures as they come may be large; of each only what the network sees is kept.
    views = [network.prepare(read_picture(path), occluder.extent)[0] for path in pictures]
    strengths = np.stack([occluder.strengths(seen) for seen in views])
    try:
        deconvnet = network.deconvnet()
        deconvnet.feature_map_count(occluder.layer)
    except ValueError as error:
        # Any classifier has the rest of Figure 7.
        deconvnet = None
        click.echo(f"There are no projections. {error}")
    with Stages() as show:
        for index, (path, name, seen) in enumerate(zip(pictures, titles, views, strict=True)):
            done = 0

            def on_batch(count, name=name):
                nonlocal done
                done += count
                show(name, done, occluder.count)

            numbers = output / f"{name}.npz"
            found = _already_found(numbers, occluder.fingerprint(seen, value, chosen[index]))
            if found is None:
                found = occluder.slide(
                    seen, value, label=chosen[index], batch_size=batch_size, on_batch=on_batch
                )
            projected, sheet = {}, None
            if deconvnet is not None:
                strength = strengths[:, found.feature_map]
                ranked = [
                    one for one in np.argsort(-strength) if one != index and strength[one] > 0
                ]
                shown = np.stack([views[one] for one in (index, *ranked[:OTHERS])]) - mean_image
                maps = np.full(len(shown), found.feature_map)
                projections = deconvnet.project_feature_maps(shown, found.layer, maps).projections
                tiles = [rendering.draw_signed(one) for one in projections]
                if len(tiles) > 1:
                    tiles[0] = rendering.outline(tiles[0], (0, 0, *occluder.extent), BLACK, FRAME)
                projected, sheet = {"projection": projections[0]}, rendering.contact_sheet(tiles)
            found.save(numbers, **projected)
            figure = plots.occlusion(found, seen, sheet, names)
            plots.save(figure, output / f"{name}.png")
            lowest = found.probabilities[..., found.label]
            row, column = (int(one) for one in divmod(lowest.argmin(), lowest.shape[1]))
            click.echo(
                f"{path}: {names[found.label]} "
                f"{found.unoccluded_probabilities[found.label]:.1%}, down to {lowest.min():.1%} "
                f"with the square at row {found.rows[row]}, column {found.columns[column]}"
            )
    click.echo(f"Wrote a figure and the numbers of {len(pictures)} pictures to {output}")


def _already_found(path, fingerprint):
    """What an earlier call found with the same picture, network and settings; None if nothing."""
    from zfkeras import occlusion as occlusions

    try:
        found = occlusions.load(path)
    except (ValueError, OSError):
        return None
    return found if found.fingerprint == fingerprint else None
