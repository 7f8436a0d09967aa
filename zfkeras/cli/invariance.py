"""`zfkeras invariance`: what translation, scale and rotation do to features."""

from pathlib import Path

import click
import numpy as np

from zfkeras.choices import BORDERS, NORMALIZATIONS, TRANSFORMATIONS
from zfkeras.cli.errors import OneLineCommand, one_line_errors
from zfkeras.cli.options import (
    class_numbers,
    keras_file_options,
    labels_option,
    layers_option,
    model_option,
    names,
    names_of_results,
    output_option,
    prepare_output,
    word_or_colour,
)
from zfkeras.cli.progress import Stages
from zfkeras.cli.startup import import_tensorflow

MOST_STEPS = 10_000
EXAMPLES, COLUMNS = 6, 3


def steps(context, parameter, text):
    """Callback of an option that takes a first value, a last one and a step, such as -60:60:5."""
    if text is None:
        return None
    try:
        first, last, step = (float(part) for part in text.split(":"))
        count = (last - first) / step
        if not np.isfinite([first, last, step]).all():
            raise ValueError("A number is infinite or none.")
    except (ValueError, ZeroDivisionError) as error:
        raise click.BadParameter(f"Expected FIRST:LAST:STEP. Received: {text}.") from error
    if not 0 <= count < MOST_STEPS:
        raise click.BadParameter(
            f"Expected at most {MOST_STEPS} steps from the first to the last value. "
            f"Received: {text}."
        )
    return np.round(first + step * np.arange(int(count + 1e-9) + 1), 6)


@click.command(cls=OneLineCommand)
@click.argument("pictures", nargs=-1, required=True, type=click.Path(path_type=Path))
@model_option("Training run, exported model or .keras file.")
@layers_option("the first and the last")
@labels_option
@click.option(
    "--transformations",
    default=",".join(TRANSFORMATIONS),
    show_default=True,
    callback=names,
    help="Which of them, with commas between.",
)
@click.option(
    "--translation",
    metavar="FIRST:LAST:STEP",
    callback=steps,
    help="Pixels, down and to the right.  [-60:60:5 of 224]",
)
@click.option("--scale", metavar="FIRST:LAST:STEP", callback=steps, help="Times.  [1:1.8:0.05]")
@click.option(
    "--rotation",
    metavar="FIRST:LAST:STEP",
    callback=steps,
    help="Degrees counterclockwise.  [0:350:10]",
)
@click.option(
    "--border",
    default="mean",
    show_default=True,
    callback=word_or_colour,
    help=f"What comes in from beyond the picture: {', '.join(BORDERS)} or R,G,B from 0 to 255.",
)
@click.option(
    "--normalization",
    type=click.Choice(NORMALIZATIONS),
    default="relative",
    show_default=True,
    help="Distances in lengths of the untouched picture's features, between features of length 1, "
    "or as they are.",
)
@click.option("--batch-size", type=click.IntRange(1), default=32, show_default=True)
@output_option("invariance", help="Folder for the figure and the numbers.")
@keras_file_options
@one_line_errors
def invariance(
    pictures,
    model_path,
    layers,
    labels,
    transformations,
    translation,
    scale,
    rotation,
    border,
    normalization,
    batch_size,
    output,
    preprocessing,
    input_size,
):
    """Move, enlarge and turn PICTURES and see how far features follow: Figure 5.

    \b
    Example:
        zfkeras invariance dog.jpg truck.jpg --layers conv1,fc7 --output invariance
    """
    results = [f"invariance.{suffix}" for suffix in ("npz", "csv", "png")]
    prepare_output(output, results, pictures)
    import_tensorflow()
    from zfkeras import plots, rendering, trained
    from zfkeras.data.pictures import read_picture
    from zfkeras.invariance import InvarianceProbe

    network = trained.load(model_path, preprocessing, input_size)
    given = {"vertical": translation, "horizontal": translation}
    given |= {"scale": scale, "rotation": rotation}
    probe = InvarianceProbe(
        network,
        layers or ("first", "last"),
        {kind: given.get(kind) for kind in transformations},
        normalization,
        border,
    )
    chosen = class_numbers(labels, probe.names, len(pictures))
    squares = [network.square(read_picture(path)) for path in pictures]
    done = 0
    with Stages() as show:

        def on_batch(count):
            nonlocal done
            done += count
            show("transformed pictures", done, probe.count * len(pictures))

        found = probe(squares, chosen, batch_size, on_batch)
    strips = {}
    for kind, values in probe.values.items():
        which = np.unique(np.linspace(0, len(values) - 1, EXAMPLES).round().astype(int))
        seen = probe.transformed(squares[0], kind, values[which]).numpy().round()
        strips[kind] = rendering.contact_sheet(list(seen.clip(0, 255).astype(np.uint8)), COLUMNS)
    found.save(output / "invariance.npz")
    found.save_table(output / "invariance.csv", map(str, pictures), probe.names)
    figure = plots.invariance(found, strips, names_of_results(pictures), probe.names)
    plots.save(figure, output / "invariance.png")
    for index, path in enumerate(pictures):
        label = probe.names[found.labels[index]]
        parts = [
            f"{kind} {probabilities[index].min():.1%} to {probabilities[index].max():.1%}"
            for kind, probabilities in found.probabilities.items()
        ]
        click.echo(f"{path}: {label}, {', '.join(parts)}")
    click.echo(f"Wrote invariance.png, invariance.csv and invariance.npz to {output}")
