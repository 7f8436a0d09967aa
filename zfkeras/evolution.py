"""Figure 4: what excites a feature map most at different times of training, projected.

At every snapshot of a run the whole data set is searched for the strongest unit of each chosen
feature map: a gallery of one exemplar per map for each epoch. Sudden jumps in a row of the figure
come from another picture becoming the strongest.
"""

import csv
import json
from pathlib import Path

import numpy as np

from zfkeras import gallery, plots, rendering
from zfkeras.trained import Trained
from zfkeras.writing import replacing

COLUMNS = (
    *("layer", "feature_map", "epoch", "picture", "name", "row", "column", "activation"),
    "changed",  # Whether the snapshot before had another picture.
)


def choose_maps(counts, count, seed):
    """Random feature maps of every layer, as in the paper: `{layer: sorted int array}`.

    Args:
        counts: `{layer: number of feature maps}`.
        count: How many to choose, or all of a layer that has fewer.
        seed: Decides which.
    """
    rng = np.random.default_rng(seed)
    return {
        layer: np.sort(rng.choice(maps, min(count, maps), replace=False))
        for layer, maps in counts.items()
    }


def make(
    snapshots,
    mean_image,
    class_names,
    pictures,
    output,
    layers,
    feature_maps,
    batch_size=32,
    on_progress=lambda stage, done, total: None,
):
    """Follows feature maps through training, or goes on with following them.

    Args:
        snapshots: Pairs of an epoch and the model that the run was then, the earliest first.
        mean_image, class_names: Of the run.
        pictures: `IndexedPictures` or `StreamedPictures`; the paper takes the training set.
        output: Folder, made if missing: a gallery for each epoch, `evolution.csv` with the winners,
            and a figure for each layer.
        layers: Names of layers.
        feature_maps: `{layer: int array}`, which feature maps to follow.
        batch_size, on_progress: As in `zfkeras.gallery.make`.

    Returns:
        `{layer: list of LayerGallery}`, one for each snapshot, of the one strongest exemplar; and
        the list of their epochs.

    Raises:
        GalleryError: If the folder holds something else, or another evolution.
    """
    output, epochs = Path(output), []
    claim = {layer: np.asarray(feature_maps[layer]).tolist() for layer in layers}
    _claim(output, claim)
    followed = {layer: [] for layer in layers}
    for epoch, model in snapshots:
        folder = output / f"epoch-{epoch:04}"
        gallery.make(
            Trained(model, mean_image, class_names),
            pictures,
            folder,
            layers,
            top_k=1,
            feature_maps={layer: feature_maps[layer] for layer in layers},
            batch_size=batch_size,
            on_progress=lambda stage, done, total, epoch=epoch: on_progress(
                f"epoch {epoch}: {stage}", done, total
            ),
        )
        epochs.append(epoch)
        for layer in layers:
            followed[layer].append(gallery.LayerGallery.load(folder / f"{layer}.npz"))
    _write_winners(followed, epochs, output / "evolution.csv")
    for layer in layers:
        sheet = draw(followed[layer])
        title = f"feature map of {layer}"
        figure = plots.evolution(sheet, title, followed[layer][0].feature_maps, epochs)
        plots.save(figure, output / f"{layer}.png")
    return followed, epochs


def changes(followed):
    """Where another picture took the lead: bool `(snapshots, maps)`, the first line False."""
    winners = np.stack([one.pictures[:, 0] for one in followed])
    return np.concatenate([np.zeros_like(winners[:1], bool), winners[1:] != winners[:-1]])


def draw(followed):
    """One row for every feature map, one column for every snapshot, uint8."""
    tiles = [
        rendering.enlarge(rendering.draw_signed(one.projections[index, 0]))
        for index in range(len(followed[0].feature_maps))
        for one in followed
    ]
    return rendering.contact_sheet(tiles, columns=len(followed))


def _claim(output, claim):
    path = output / "evolution.json"
    if path.exists():
        try:
            found = json.loads(path.read_text())
        except ValueError as error:
            raise gallery.GalleryError(f"{path} is damaged.") from error
        if found != claim:
            raise gallery.GalleryError(
                f"{output} follows other layers or feature maps. "
                "Expected the same, or a new folder."
            )
        return
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise gallery.GalleryError(
            f"{output} holds something else. Expected a new or empty folder."
        )
    output.mkdir(parents=True, exist_ok=True)
    with replacing(path) as beside:
        beside.write_text(json.dumps(claim))


def _write_winners(followed, epochs, path):
    with replacing(path) as beside, beside.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(COLUMNS)
        for layer, galleries in followed.items():
            changed = changes(galleries)
            for index, feature_map in enumerate(galleries[0].feature_maps):
                for time, (epoch, one) in enumerate(zip(epochs, galleries, strict=True)):
                    values = (one.pictures, one.names, one.rows, one.columns, one.activations)
                    table.writerow(
                        [
                            layer,
                            feature_map,
                            epoch,
                            *(value[index, 0] for value in values),
                            int(changed[time, index]),
                        ]
                    )
