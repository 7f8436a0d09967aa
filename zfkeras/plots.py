"""Numbers -> figures with axes, through matplotlib. What is made of pixels is in `rendering`."""

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from zfkeras.writing import replacing

# More names than this do not fit beside an axis.
MOST_NAMES = 40
# Of the classes of one map, colours that can be told apart; and what all others share.
MOST_COLOURS, OTHERS = 19, (0.85, 0.85, 0.85)
LINES = ("-", "--", ":", "-.")


def confusion(counts, class_names):
    """A confusion matrix: classes in rows, what they were taken for in columns.

    Args:
        counts: int `(classes, classes)`, pictures.
        class_names: Name of each class.

    Returns:
        A matplotlib `Figure`, shaded by share of the row.
    """
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    named = len(class_names) <= MOST_NAMES
    side = 3 + 0.4 * len(class_names) if named else 12
    figure = Figure((side + 1, side), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, label="share of the class", shrink=0.8)
    axes.set(xlabel="taken for", ylabel="class")
    if named:
        ticks = range(len(class_names))
        axes.set_xticks(ticks, class_names, rotation=60, ha="right", rotation_mode="anchor")
        axes.set_yticks(ticks, class_names)
        for row, column in np.argwhere(counts > 0):
            colour = "white" if shares[row, column] > 0.5 else "black"
            axes.text(
                column, row, counts[row, column], ha="center", va="center", color=colour, fontsize=8
            )
    return figure


def evolution(sheet, title, row_names, column_names):
    """Figure 4: a contact sheet with a name beside every row and above every column.

    Args:
        sheet: uint8 `(height, width, 3)` of equal rows and equal columns.
        title: What the rows are.
        row_names, column_names: One for each row and column.

    Returns:
        A matplotlib `Figure` in which every pixel of the sheet is about one pixel.
    """
    height, width = sheet.shape[:2]
    figure = Figure((width / 120 + 1.2, height / 120 + 0.9), layout="constrained")
    axes = figure.subplots()
    axes.imshow(sheet, interpolation="none")
    axes.set(xlabel="epoch", ylabel=title)
    for axis, names, extent in ((axes.xaxis, column_names, width), (axes.yaxis, row_names, height)):
        axis.set_ticks((np.arange(len(names)) + 0.5) * extent / len(names), names)
    axes.xaxis.set_label_position("top")
    axes.tick_params(top=True, labeltop=True, bottom=False, labelbottom=False, length=0)
    axes.spines[:].set_visible(False)
    return figure


def occlusion(sensitivity, seen, projection, class_names):
    """Figure 7 of one picture: where what was hidden, and what came of it.

    Args:
        sensitivity: A `zfkeras.occlusion.Sensitivity`.
        seen: uint8 `(height, width, 3)`, the picture as the network sees it.
        projection: uint8 `(any, any, 3)`, the watched map's projection or a sheet of several; None
            where the layer cannot be projected.
        class_names: Name of each class.

    Returns:
        A matplotlib `Figure` of five panels. A position is drawn where its square's middle is.
    """
    found, class_names = sensitivity, [_plain(name) for name in class_names]
    layer = _plain(found.layer)
    figure = Figure((19, 4), layout="constrained")
    picture, activity, projected, probability, classes = figure.subplots(1, 5)
    # Halfway between the middles of neighbouring squares; the last step may be a shorter one.
    edges = [_between(starts, found.size) for starts in (found.columns, found.rows)]
    square = Rectangle((0, 0), found.size, found.size, color="0.5")
    picture.imshow(seen)
    picture.add_patch(square)
    picture.set_title(class_names[found.label])
    picture.set_xlabel(f"the square is {found.size} pixels wide")
    projected.set(xticks=(), yticks=())
    if projection is None:
        projected.set_axis_off()
    else:
        projected.imshow(projection)
        projected.set_title(f"projection of {layer}, map {found.feature_map}")
    activations = found.activations, f"{layer}, map {found.feature_map}: sum", None
    of_class = found.probabilities[..., found.label], f"p({class_names[found.label]})", 0
    for axes, (values, title, lowest) in ((activity, activations), (probability, of_class)):
        shown = axes.pcolormesh(*edges, values, vmin=lowest, cmap="viridis")
        figure.colorbar(shown, ax=axes, shrink=0.8)
        axes.set_title(title)
    # Each class that comes up often has a colour of its own, all others one together.
    labels, counts = np.unique(found.classes, return_counts=True)
    named = np.sort(labels[np.argsort(-counts, kind="stable")[:MOST_COLOURS]])
    colours = dict(zip(named.tolist(), colormaps["tab20"].colors, strict=False))
    coloured = [[colours.get(label, OTHERS) for label in row] for row in found.classes.tolist()]
    classes.pcolormesh(*edges, np.array(coloured))
    classes.set_title("most probable class")
    handles = [Patch(color=colour, label=class_names[one]) for one, colour in colours.items()]
    if len(labels) > len(named):
        handles.append(Patch(color=OTHERS, label=f"{len(labels) - len(named)} others"))
    classes.legend(handles=handles, loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8)
    for axes in (picture, activity, probability, classes):
        axes.set(xlim=(0, seen.shape[1]), ylim=(seen.shape[0], 0), xticks=(), yticks=())
        axes.set_aspect("equal")
    return figure


def _plain(text):
    """Text that is drawn as it stands: a pair of dollar signs would make it a formula."""
    return text.replace("$", r"\$")


def _between(starts, size):
    """Edges of cells around the middles of squares, one more than these."""
    middles = starts + size / 2
    inner = (middles[1:] + middles[:-1]) / 2
    first, last = (
        (2 * middles[0] - inner[0], 2 * middles[-1] - inner[-1])
        if len(inner)
        else (middles[0] - size / 2, middles[0] + size / 2)
    )
    return np.concatenate([[first], inner, [last]])


AXES_OF_TRANSFORMATIONS = {
    "vertical": "vertical translation (pixels)",
    "horizontal": "horizontal translation (pixels)",
    "scale": "scale (ratio)",
    "rotation": "rotation (degrees)",
}
UNITS_OF_DISTANCES = {
    "relative": "distance / length of the features",
    "unit": "distance of features of length 1",
    "none": "distance",
}


def invariance(found, strips, picture_names, class_names):
    """Figure 5: how far features move, and the probability of the class, under transformations.

    Args:
        found: A `zfkeras.invariance.Invariance`.
        strips: `{transformation: uint8 (height, width, 3)}`, what it makes of the first picture.
        picture_names: One for each picture.
        class_names: Name of each class.

    Returns:
        A matplotlib `Figure`, a row of panels for each transformation.
    """
    kinds, columns = list(found.values), len(found.layers) + 2
    figure = Figure((4.6 * columns, 3.4 * len(kinds) + 0.7), layout="constrained")
    panels = figure.subplots(len(kinds), columns, squeeze=False)
    legend = [
        _plain(f"{name}: {class_names[label]}")
        for name, label in zip(picture_names, found.labels, strict=True)
    ]
    panels[0, 0].set_title(_plain(picture_names[0]))
    for row, kind in zip(panels, kinds, strict=True):
        row[0].imshow(strips[kind])
        row[0].set(xticks=(), yticks=(), xlabel=AXES_OF_TRANSFORMATIONS[kind])
        curves = [*found.distances[kind].swapaxes(0, 1), found.probabilities[kind]]
        titles = [*map(_plain, found.layers), "probability of the class"]
        for axes, values, title in zip(row[1:], curves, titles, strict=True):
            # Colours come again after ten pictures. A single step is a point.
            marker = "o" if values.shape[1] == 1 else None
            lines = axes.plot(found.values[kind], values.T, marker=marker)
            for index, line in enumerate(lines):
                line.set_linestyle(LINES[index // 10 % len(LINES)])
            axes.set(xlabel=AXES_OF_TRANSFORMATIONS[kind], title=title)
            axes.set_ylim(0, 1.02 if axes is row[-1] else None)
            axes.margins(x=0 if values.shape[1] > 1 else None)
        for axes in row[1:-1]:
            axes.set_ylabel(UNITS_OF_DISTANCES[found.normalization])
    if len(legend) <= MOST_NAMES:
        figure.legend(lines, legend, loc="outside lower center", ncols=min(len(legend), 5))
    return figure


def save(figure, path):
    """Writes a figure; the suffix of `path` decides the format."""
    with replacing(path) as beside:
        figure.savefig(beside, dpi=120)
