"""`zfkeras project`: one picture's projections as a contact sheet and as numbers."""

from pathlib import Path

import click

from zfkeras.cli.errors import OneLineCommand, one_line_errors
from zfkeras.cli.options import keras_file_options, model_option, output_option
from zfkeras.cli.startup import import_tensorflow


@click.command(cls=OneLineCommand)
@click.argument("picture", type=click.Path(path_type=Path))
@model_option("Training run, exported model or .keras file.")
@click.option("--layer", help="Layer to project from.  [the highest]")
@click.option(
    "--top",
    type=int,
    default=9,
    show_default=True,
    help="How many of the layer's strongest feature maps to project.",
)
@click.option(
    "--feature-map",
    "feature_maps",
    type=int,
    multiple=True,
    help="Feature map to project instead of the strongest; may be repeated.",
)
@output_option("sheet.png", help="Contact sheet: projections left, patches right.")
@click.option(
    "--numbers",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Also save the numbers to this .npz file.",
)
@keras_file_options
@one_line_errors
def project(
    picture, model_path, layer, top, feature_maps, output, numbers, preprocessing, input_size
):
    """Project what PICTURE excites in a layer back to pixel space.

    \b
    Example:
        zfkeras project tabby.jpg --layer conv3 --top 4 --output tabby.png
    """
    from zfkeras import rendering
    from zfkeras.data.pictures import read_picture

    rendering.require_image_path(output)
    if numbers and numbers.suffix != ".npz":
        raise click.BadParameter(
            f"Expected a .npz file. Received: {numbers}.", param_hint="--numbers"
        )
    pixels = read_picture(picture)
    import_tensorflow()
    from zfkeras import trained
    from zfkeras.writing import replacing

    model = trained.load(model_path, preprocessing, input_size)
    deconvnet = model.deconvnet()
    layer = layer or deconvnet.feature_layers[-1]
    count = deconvnet.feature_map_count(layer)
    for feature_map in feature_maps:
        if not 0 <= feature_map < count:
            raise click.BadParameter(
                f"{layer} has feature maps 0 to {count - 1}. Received: {feature_map}.",
                param_hint="--feature-map",
            )
    if not feature_maps and not 1 <= top <= count:
        raise click.BadParameter(
            f"Expected 1 to {count} of {layer}'s {count} feature maps. Received: {top}.",
            param_hint="--top",
        )
    seen, inputs = model.prepare(pixels, deconvnet.input_shape[:2])
    chosen = feature_maps or range(-1, -top - 1, -1)
    projections = deconvnet.project_feature_maps(inputs, layer, [chosen])
    sheet = rendering.projection_sheet(projections.projections, projections.windows, seen)
    rendering.save(sheet, output)
    if numbers:
        with replacing(numbers) as beside:
            projections.save(beside, picture=seen)
    if model.class_names:
        name, probability = model.classify(inputs)
        click.echo(f"{name} ({probability:.1%})")
    click.echo(f"Wrote {len(projections)} projections of {layer} to {output}")
