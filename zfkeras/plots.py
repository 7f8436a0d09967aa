"""Numbers -> figures with axes, through matplotlib. What is made of pixels is in `rendering`."""

import numpy as np
from matplotlib.figure import Figure

from zfkeras.writing import replacing

# More names than this do not fit beside an axis.
MOST_NAMES = 40


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


def save(figure, path):
    """Writes a figure; the suffix of `path` decides the format."""
    with replacing(path) as beside:
        figure.savefig(beside, dpi=120)
