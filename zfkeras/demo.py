"""The main job on what ships with the project: one page that shows what a network looks for."""

import html
import string
from pathlib import Path

import numpy as np

from zfkeras import rendering
from zfkeras.data import samples
from zfkeras.writing import replacing

SHOWN_MAPS = 6
SHOWN_CLASSES = 3

_PAGE = string.Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>What $model sees</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem;
  color: #222; background: #fff; }
h2 { border-top: 1px solid #ddd; padding-top: 1.5rem; margin-top: 2.5rem; }
.top { display: flex; gap: 1.5rem; align-items: flex-start; flex-wrap: wrap; }
.layer { display: grid; grid-template-columns: 4.5rem 1fr; gap: 0.5rem; margin: 0.75rem 0; }
.layer b { padding-top: 0.25rem; }
img { max-width: 100%; height: auto; display: block; }
table { border-collapse: collapse; }
td { padding: 0.1rem 1rem 0.1rem 0; }
.bar { display: inline-block; height: 0.7rem; background: #4878a8; }
figcaption, .note { color: #666; font-size: 0.9rem; }
</style>
</head>
<body>
<h1>What $model sees</h1>
<p>A network of five convolutional layers, trained on $count_classes kinds of pictures: $classes.
It has seen nothing else, so it calls every photograph below one of these. Top-1 error on its
$validation_count validation pictures: $error.</p>
<p>For each photograph and each layer, the six feature maps that respond most. Above, the
deconvnet's projection: what in the picture made the strongest unit of that map fire, grey where
nothing did, each with its own contrast. Below, the part of the picture that this unit sees.
Higher layers see more of the picture.</p>
<p>Jump to: $links</p>
<h2 id="filters">First-layer filters</h2>
<figure><img src="filters.png" alt="First-layer filters">
<figcaption>Each filter of $first_layer with its own contrast.</figcaption></figure>
$sections
</body>
</html>
""")

_SECTION = string.Template("""<h2 id="$name">$name</h2>
<div class="top"><img src="$name/seen.png" width="256" height="256" alt="$name">
<table>$rows</table></div>
<p class="note">As the network sees it: the centre square, $input_size pixels.</p>
$layers
""")


def write(model, output, sample_names=samples.NAMES, report=lambda name: None):
    """Projects photographs from every layer and writes a page that shows the result.

    Args:
        model: A `zfkeras.export.ExportedModel`.
        output: Folder to write to; files of an earlier demo are replaced.
        sample_names: Which of `zfkeras.data.samples` to show.
        report: Called with the name of each photograph that is done.

    Returns:
        Path of the page, `<output>/index.html`.
    """
    output = Path(output)
    rendering.save(
        rendering.filter_sheet(model.first_layer_filters(), columns=16), output / "filters.png"
    )
    sections = []
    for name in sample_names:
        sections.append(_section(model, name, output / name))
        report(name)
    errors = model.card["errors"]
    page = _PAGE.substitute(
        model=html.escape(model.card["name"]),
        classes=html.escape(", ".join(model.class_names)),
        count_classes=len(model.class_names),
        validation_count=f"{errors['count']:,}",
        error=f"{errors['top1']:.1%}",
        first_layer=model.feature_layers[0],
        links=", ".join(f'<a href="#{name}">{name}</a>' for name in ("filters", *sample_names)),
        sections="\n".join(sections),
    )
    with replacing(output / "index.html") as beside:
        beside.write_text(page, encoding="utf-8")
    return output / "index.html"


def _section(model, name, folder):
    picture = samples.load(name)
    probabilities = model.classify(picture)
    layers = []
    for layer in model.feature_layers:
        projections, seen = model.project_strongest(picture, layer, SHOWN_MAPS)
        above = rendering.projection_tiles(projections.projections, projections.windows)
        below = rendering.patch_tiles(seen, projections.windows)
        sheet = rendering.contact_sheet([*above, *below], columns=SHOWN_MAPS)
        rendering.save(sheet, folder / f"{layer}.png")
        maps = ", ".join(map(str, projections.feature_maps))
        layers.append(
            f'<div class="layer"><b>{layer}</b><figure style="margin:0">'
            f'<img src="{name}/{layer}.png" alt="{layer} of {name}">'
            f"<figcaption>feature maps {maps}</figcaption></figure></div>"
        )
    rendering.save(seen, folder / "seen.png")
    strongest = np.argsort(-probabilities, kind="stable")[:SHOWN_CLASSES]
    rows = "".join(
        f"<tr><td>{html.escape(model.class_names[index])}</td><td>{probabilities[index]:.1%}</td>"
        f'<td><span class="bar" style="width:{8 * probabilities[index]:.2f}rem"></span></td></tr>'
        for index in strongest
    )
    input_size = " x ".join(map(str, model.architecture.input_size))
    return _SECTION.substitute(
        name=name, rows=rows, layers="\n".join(layers), input_size=input_size
    )
