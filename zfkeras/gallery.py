"""Figure 2 of a whole network: every feature map's exemplars, each beside its projection.

Two passes over a data set: one that finds the exemplars (`zfkeras.exemplars`), and one that reads
their pictures again, layer by layer, and projects them. A folder holds the numbers, contact sheets
and a page to look at them; what is in it already is not done again.
"""

import dataclasses
import hashlib
import html
import json
import string
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow as tf

from zfkeras import rendering
from zfkeras.data import batches, images
from zfkeras.deconvnet import Deconvnet
from zfkeras.exemplars import ARRAYS, Exemplars, Scan
from zfkeras.training.strategy import distribute, make_strategy
from zfkeras.writing import replacing

SETTINGS, STATE = "gallery.json", "scan.npz"
SECONDS_BETWEEN_SAVES = 30
LAYER_SHEET_TILE, LAYER_SHEET_COLUMNS = 32, 12


class GalleryError(ValueError):
    """A gallery that cannot be made; the message says why."""


@dataclass(frozen=True)
class LayerGallery:
    """Exemplars of one layer and what they look like. First axis: feature map; second: rank.

    Attributes:
        layer: Name of the layer.
        feature_maps: int32 `(maps,)`, which feature maps these are.
        pictures, rows, columns, activations: As of `Exemplars`.
        names: str `(maps, top_k)`, what the data set calls the pictures; empty where none fired.
        boxes, windows: int32 `(maps, top_k, 4)`, as of `Projections`.
        projections: float32 `(maps, top_k, size, size, 3)`, inside the windows.
        patches: uint8, shaped like them: the pictures, grey where a window reaches past them.
    """

    layer: str
    feature_maps: np.ndarray
    pictures: np.ndarray
    rows: np.ndarray
    columns: np.ndarray
    activations: np.ndarray
    names: np.ndarray
    boxes: np.ndarray
    windows: np.ndarray
    projections: np.ndarray
    patches: np.ndarray

    def save(self, path):
        """Writes all arrays into one `.npz` file."""
        with replacing(path) as beside, beside.open("wb") as file:
            np.savez_compressed(file, **dataclasses.asdict(self))

    @classmethod
    def load(cls, path):
        """What `save` wrote."""
        with np.load(path) as arrays:
            return cls(**{**arrays, "layer": str(arrays["layer"])})


def make(
    trained,
    pictures,
    output,
    layers=None,
    top_k=9,
    repeats=1,
    feature_maps=None,
    batch_size=32,
    strategy="default",
    on_progress=lambda stage, done, total: None,
):
    """Makes a gallery, or goes on with one that was interrupted.

    Args:
        trained: A `zfkeras.export.Trained` network.
        pictures: `IndexedPictures` or `StreamedPictures` of its mean image's side.
        output: Folder of the gallery, made if missing.
        layers: Names of layers; all if None.
        top_k, repeats: As in `zfkeras.exemplars.Scan`.
        feature_maps: Which feature maps of every layer to project, or a dictionary that says so of
            each layer; all if None.
        batch_size: Pictures, or projections, at a time.
        strategy: `"default"` or `"mirrored"`, see `zfkeras.training.strategy`.
        on_progress: Called with what is being done, how much of it is done, and how much there is.

    Returns:
        The settings and findings that `gallery.json` holds.

    Raises:
        GalleryError: If the folder holds something else, or another gallery.
        ValueError: If a layer or a feature map is unknown.
    """
    output, deconvnet = Path(output), Deconvnet(trained.model)
    layers = deconvnet.feature_layers if layers is None else tuple(layers)
    scan = Scan(deconvnet, layers, top_k, repeats, make_strategy(strategy))
    counts = deconvnet.feature_map_counts()
    by_layer = feature_maps if isinstance(feature_maps, dict) else {}
    chosen = {
        layer: _chosen_maps(by_layer.get(layer, feature_maps), layer, counts[layer])
        for layer in layers
    }
    settings = {
        "weights": _fingerprint(trained.model),
        "dataset": pictures.source,
        "pictures": pictures.count,
        "layers": list(layers),
        "top_k": top_k,
        "repeats": repeats,
        "feature_maps": {layer: maps.tolist() for layer, maps in chosen.items()},
    }
    findings = _claim(output, settings)
    if "unreadable" not in findings:
        started = time.monotonic()
        lost = _scan(scan, trained, pictures, output, batch_size, on_progress)
        findings["unreadable"] = [pictures.name(number) for number in lost]
        findings["scan_seconds"] = round(time.monotonic() - started, 1)
        _write_settings(output, settings, findings)
    else:
        _restore(scan, output)
    for layer in layers:
        if layer in findings["projection_seconds"]:
            continue
        started = time.monotonic()
        made = _project(
            deconvnet, scan.exemplars[layer], chosen[layer], trained, pictures, batch_size,
            lambda done, total, layer=layer: on_progress(f"projecting {layer}", done, total),
        )  # fmt: skip
        made.save(output / f"{layer}.npz")
        findings["projection_seconds"][layer] = round(time.monotonic() - started, 1)
        _draw(made, output)
        findings["drawing_seconds"][layer] = round(
            time.monotonic() - started - findings["projection_seconds"][layer], 1
        )
        _write_settings(output, settings, findings)
    _write_page(output, settings, findings)
    return {**settings, **findings}


def _chosen_maps(feature_maps, layer, count):
    if feature_maps is None:
        return np.arange(count, dtype=np.int32)
    chosen = np.unique(np.asarray(feature_maps, np.int32))
    if not len(chosen) or chosen[0] < 0 or chosen[-1] >= count:
        raise ValueError(
            f"{layer} has feature maps 0 to {count - 1}. "
            f"Received: {', '.join(map(str, feature_maps))}."
        )
    return chosen


def _fingerprint(model):
    digest = hashlib.sha256()
    for weight in model.get_weights():
        digest.update(np.ascontiguousarray(weight))
    return digest.hexdigest()[:16]


def _claim(output, settings):
    """What is already known of the gallery in a folder, which must be this one or empty."""
    path = output / SETTINGS
    if not path.exists():
        if output.exists() and (not output.is_dir() or any(output.iterdir())):
            raise GalleryError(f"{output} holds something else. Expected a new or empty folder.")
        output.mkdir(parents=True, exist_ok=True)
        findings = {"projection_seconds": {}, "drawing_seconds": {}}
        _write_settings(output, settings, findings)
        return findings
    try:
        found = json.loads(path.read_text())
        changed = [name for name, value in settings.items() if found["settings"][name] != value]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise GalleryError(f"{path} is damaged.") from error
    if changed:
        raise GalleryError(
            f"{output} holds a gallery with another {' and '.join(changed)}. "
            "Expected the same, or a new folder."
        )
    return found["findings"]


def _write_settings(output, settings, findings):
    with replacing(output / SETTINGS) as beside:
        beside.write_text(json.dumps({"settings": settings, "findings": findings}, indent=2))


def _scan(scan, trained, pictures, output, batch_size, on_progress):
    """Looks at every picture; gives the numbers of those that cannot be read."""
    first, seen = _restore(scan, output), np.zeros(pictures.count, bool)
    seen[:first] = True
    if first:
        with np.load(output / STATE) as state:
            seen[state["unreadable"]] = False
    input_size = tuple(trained.model.input_shape[1:3])
    mean_image = tf.constant(trained.mean_image)

    @tf.function(autograph=False)
    def prepare(squares):
        return scan.strategy.run(
            lambda part: images.centre_crop(images.subtract_mean(part, mean_image), input_size),
            (squares,),
        )

    iterator = distribute(
        scan.strategy,
        lambda share: batches.numbered_batches(pictures, batch_size, first, share),
    )
    saved = time.monotonic()
    while first < pictures.count:
        squares, numbers = next(iterator)
        parts = scan.strategy.experimental_local_results(numbers)
        numbers_seen = np.concatenate([part.numpy() for part in parts])
        if numbers_seen.max() < 0:
            first = pictures.count  # Only padding is left: the last ones could not be read.
        else:
            scan.update(prepare(squares), numbers)
            seen[numbers_seen[numbers_seen >= 0]] = True
            # They come in order, so everything before the last one has come.
            first = int(numbers_seen.max()) + 1
        on_progress("scanning", first, pictures.count)
        if first == pictures.count or time.monotonic() - saved > SECONDS_BETWEEN_SAVES:
            _save(scan, first, np.flatnonzero(~seen[:first]), output)
            saved = time.monotonic()
    return np.flatnonzero(~seen)


def _save(scan, first, unreadable, output):
    arrays = {
        f"{layer}/{name}": getattr(found, name)
        for layer, found in scan.exemplars.items()
        for name in ARRAYS
    }
    with replacing(output / STATE) as beside, beside.open("wb") as file:
        np.savez(file, first=first, unreadable=unreadable, **arrays)


def _restore(scan, output):
    """Goes on from a saved scan, if there is one; gives the number of the next picture."""
    path = output / STATE
    if not path.exists():
        return 0
    try:
        with np.load(path) as state:
            for layer in scan.exemplars:
                found = {name: state[f"{layer}/{name}"] for name in ARRAYS}
                scan.exemplars[layer] = Exemplars(layer, **found)
            return int(state["first"])
    except (OSError, ValueError, KeyError) as error:
        raise GalleryError(f"{path} is damaged.") from error


def _project(deconvnet, exemplars, chosen, trained, pictures, batch_size, on_progress):
    units = {name: getattr(exemplars, name)[chosen] for name in ARRAYS}
    shape = units["pictures"].shape
    flat = {name: array.ravel() for name, array in units.items()}
    flat["feature_maps"] = np.repeat(chosen, shape[1])
    fired = np.flatnonzero(flat["pictures"] >= 0)
    size = deconvnet.window_size(exemplars.layer)
    boxes, windows = (np.zeros((flat["pictures"].size, 4), np.int32) for _ in range(2))
    projections = np.zeros((flat["pictures"].size, *size, 3), np.float32)
    patches = np.full(projections.shape, rendering.GREY, np.uint8)
    names = np.full(flat["pictures"].size, "", object)
    input_size, done = trained.model.input_shape[1:3], 0
    wanted = np.unique(flat["pictures"][fired])
    for squares, numbers in batches.chosen_batches(pictures, wanted, batch_size):
        inputs = images.centre_crop(images.subtract_mean(squares, trained.mean_image), input_size)
        seen, numbers = images.centre_crop(squares, input_size).numpy(), numbers.numpy()
        own = fired[np.isin(flat["pictures"][fired], numbers)]
        owners = np.searchsorted(numbers, flat["pictures"][own])
        found = deconvnet.project_in_windows(
            inputs,
            exemplars.layer,
            owners,
            *(flat[name][own] for name in ("feature_maps", "rows", "columns")),
            batch_size=batch_size,
        )
        boxes[own], windows[own], projections[own] = found.boxes, found.windows, found.projections
        for unit, owner in zip(own, owners, strict=True):
            patches[unit] = rendering.cut(seen[owner], windows[unit], rendering.GREY)
            names[unit] = pictures.name(flat["pictures"][unit])
        done += len(own)
        on_progress(done, len(fired))

    def by_map(array):
        return array.reshape(*shape, *array.shape[1:])

    return LayerGallery(
        exemplars.layer,
        chosen,
        **units,
        names=by_map(names.astype(str)),
        boxes=by_map(boxes),
        windows=by_map(windows),
        projections=by_map(projections),
        patches=by_map(patches),
    )


def _draw(made, output):
    """One sheet for every feature map, and one small one for the layer."""
    small = []
    for index, feature_map in enumerate(made.feature_maps):
        for size, keep in (
            (rendering.TILE, lambda sheet, path: rendering.save(sheet, path)),
            (LAYER_SHEET_TILE, lambda sheet, path: small.append(sheet)),
        ):
            left, right = (
                rendering.contact_sheet([rendering.enlarge(tile, size) for tile in tiles])
                for tiles in (
                    [rendering.draw_signed(one) for one in made.projections[index]],
                    list(made.patches[index]),
                )
            )
            gap = np.full((len(left), rendering.GAP, 3), rendering.BACKGROUND, np.uint8)
            keep(
                np.concatenate([left, gap, right], axis=1),
                output / made.layer / f"{feature_map:04}.png",
            )
    columns = min(LAYER_SHEET_COLUMNS, len(small))
    sheet = rendering.contact_sheet(small, columns, gap=4 * rendering.GAP)
    rendering.save(sheet, output / f"{made.layer}.png")


_PAGE = string.Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>What every feature map looks for</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 80rem; margin: 2rem auto; padding: 0 1rem;
  color: #222; background: #fff; }
.maps { display: grid; grid-template-columns: repeat(auto-fill, minmax(20rem, 1fr)); gap: 1.5rem; }
figure { margin: 0; }
img { width: 100%; height: auto; display: block; }
figcaption, .note { color: #666; font-size: 0.9rem; }
h2 { border-top: 1px solid #ddd; padding-top: 1rem; }
</style>
</head>
<body>
<h1>What every feature map looks for</h1>
<p>Of each feature map the $top_k strongest units among $count pictures of $dataset, at most
$repeats of one picture. Left, the deconvnet's projections, each with its own contrast; right, the
patches that caused them. The strongest comes first, its activation is below.</p>
<p>$layers</p>
$sections
</body>
</html>
""")


def _write_page(output, settings, findings):
    sections = []
    for layer in settings["layers"]:
        made = LayerGallery.load(output / f"{layer}.npz")
        figures = []
        for feature_map, activations in zip(made.feature_maps, made.activations, strict=True):
            path = f"{layer}/{feature_map:04}.png"
            fired = f"{activations[0]:.4g}" if activations[0] > 0 else "never fired"
            figures.append(
                f'<figure id="{layer}-{feature_map}"><a href="{path}"><img loading="lazy" '
                f'src="{path}" alt="{layer}, feature map {feature_map}"></a>'
                f"<figcaption>map {feature_map}: {fired}</figcaption></figure>"
            )
        sections.append(
            f'<h2 id="{layer}">{layer}</h2>\n<p><a href="{layer}.png">All on one sheet</a>, '
            f'<a href="{layer}.npz">all numbers</a></p>\n<div class="maps">'
            + "\n".join(figures)
            + "</div>"
        )
    page = _PAGE.substitute(
        top_k=settings["top_k"],
        repeats=settings["repeats"],
        count=f"{settings['pictures'] - len(findings['unreadable']):,}",
        dataset=html.escape(settings["dataset"]),
        layers=", ".join(f'<a href="#{layer}">{layer}</a>' for layer in settings["layers"]),
        sections="\n".join(sections),
    )
    with replacing(output / "index.html") as beside:
        beside.write_text(page, encoding="utf-8")
