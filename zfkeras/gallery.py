"""Figure 2 of a whole network: every feature map's exemplars, each beside its projection.

Two passes over a data set: one that finds the exemplars (`zfkeras.exemplars`), and one that reads
their pictures again, layer by layer, and projects them. A folder holds the numbers, contact sheets
and a page to look at them; what is in it already is not done again.

Several workers share the work through the folder alone: each looks at its own pictures, then each
projects its own feature maps, and the first one puts together what all have made. So a worker that
stops holds the others up, but loses nothing, and goes on when it is started again.
"""

import dataclasses
import html
import json
import re
import string
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow as tf

from zfkeras import rendering
from zfkeras.data import batches, images
from zfkeras.data.datasets import naming_broken_pictures
from zfkeras.exemplars import ARRAYS, Exemplars, Scan
from zfkeras.fingerprint import fingerprint
from zfkeras.training.strategy import distribute, make_strategy, this_worker
from zfkeras.writing import replacing

SETTINGS = "gallery.json"
SETTING_NAMES = {
    *("model", "preprocessing", "input_size", "dataset", "pictures", "names", "layers", "top_k"),
    *("repeats", "feature_maps", "workers"),
}
# What reading a damaged archive of arrays raises.
DAMAGED = (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile)
SECONDS_BETWEEN_SAVES = 30
SECONDS_BETWEEN_LOOKS = 1
# Projections and patches that are held in memory at a time.
MOST_BYTES = 512 * 2**20
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

    def save(self, path, compress=True):
        """Writes all arrays into one `.npz` file."""
        write = np.savez_compressed if compress else np.savez
        with replacing(path) as beside, beside.open("wb") as file:
            write(file, **dataclasses.asdict(self))

    @classmethod
    def load(cls, path):
        """What `save` wrote.

        Raises:
            GalleryError: If the file is damaged.
        """
        arrays = _read_arrays(path, [field.name for field in dataclasses.fields(cls)])
        return cls(**{**arrays, "layer": str(arrays["layer"])})


@dataclass(frozen=True)
class Gallery:
    """A folder that `make` made, to be looked at.

    Attributes:
        path: The folder.
        settings, findings: What `gallery.json` holds.
        layers: Names of the layers that are there.
    """

    path: Path
    settings: dict
    findings: dict
    layers: tuple[str, ...]

    def numbers(self, layer):
        """Arrays of `LayerGallery` by name, but for the large ones of pictures."""
        small = [field.name for field in dataclasses.fields(LayerGallery)][:-2]
        return _read_arrays(self._file(layer).with_suffix(".npz"), small)

    def sheet(self, layer, feature_map):
        """Path of a feature map's contact sheet."""
        return self._file(layer) / f"{feature_map:04}.png"

    def _file(self, layer):
        return self.path / file_names(self.settings["layers"])[layer]


def load(path):
    """Opens the gallery in a folder.

    Raises:
        GalleryError: If there is none, or none of its layers is finished.
    """
    path = Path(path)
    if not (path / SETTINGS).is_file():
        raise GalleryError(f"{path} holds no gallery. Expected a folder that zfkeras gallery made.")
    settings, findings = _read_settings(path)
    files = file_names(settings["layers"])
    layers = tuple(layer for layer in files if (path / f"{files[layer]}.npz").is_file())
    if not layers:
        raise GalleryError(f"The gallery in {path} has no finished layer yet.")
    return Gallery(path, settings, findings, layers)


def _read_arrays(path, names):
    try:
        with Path(path).open("rb") as file, np.load(file) as arrays:
            return {name: arrays[name] for name in names}
    except DAMAGED as error:
        raise GalleryError(f"{path} is damaged.") from error


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
        trained: A `zfkeras.trained.Trained` network.
        pictures: `IndexedPictures` or `StreamedPictures` of its mean image's side.
        output: Folder of the gallery, made if missing.
        layers: Names of layers; all that are rectified if None.
        top_k, repeats: As in `zfkeras.exemplars.Scan`.
        feature_maps: Which feature maps of every layer to project, or a dictionary that says so of
            each layer; all if None.
        batch_size: Pictures, or projections, at a time.
        strategy: See `zfkeras.training.strategy`. With `"multi_worker_mirrored"` each worker that
            `TF_CONFIG` lists is to make the same gallery in the same folder, which all can reach.
        on_progress: Called with what is being done, how much of it is done, and how much there is.

    Returns:
        The settings and findings that `gallery.json` holds; of another worker than the first one,
        those that it knows of.

    Raises:
        GalleryError: If the folder holds something else, or another gallery.
        ValueError: If a layer or a feature map is unknown.
    """
    output, deconvnet, share = Path(output), trained.deconvnet(), batches.WHOLE
    if strategy == "multi_worker_mirrored":
        # The workers have nothing to tell each other that does not go through the folder.
        share, strategy = batches.Share(*this_worker()), "mirrored"
    layers = deconvnet.feature_layers if layers is None else tuple(layers)
    scan = Scan(deconvnet, layers, top_k, repeats, make_strategy(strategy))
    by_layer = feature_maps
    if not isinstance(feature_maps, dict):
        by_layer = dict.fromkeys(layers, feature_maps)
    chosen = {
        layer: _chosen_maps(by_layer.get(layer), layer, deconvnet.feature_map_count(layer))
        for layer in layers
    }
    settings = {
        "model": trained.fingerprint(),
        "preprocessing": trained.preprocessing,
        "input_size": list(deconvnet.input_shape[:2]),
        "dataset": pictures.source,
        "pictures": pictures.count,
        "names": fingerprint(getattr(pictures, "keys", ())),
        "layers": list(layers),
        "top_k": top_k,
        "repeats": repeats,
        "feature_maps": {layer: maps.tolist() for layer, maps in chosen.items()},
        "workers": share.workers,
    }
    findings = _claim(output, settings, share, on_progress)
    lost, findings["scan_seconds"] = _scan(
        scan, deconvnet, trained, pictures, output, batch_size, share, on_progress
    )
    for worker in range(share.workers):
        if worker != share.worker:
            lost += _merge(scan, output, pictures.count, worker, share, on_progress)
    findings["unreadable"] = [pictures.name(number) for number in sorted(lost)]
    for layer, file in file_names(layers).items():
        if layer in findings["projection_seconds"]:
            continue
        work = _LayerWork(
            deconvnet, scan.exemplars[layer], chosen[layer], trained, pictures, output, file,
            batch_size, share,
        )  # fmt: skip
        spent = work.do(lambda *news, layer=layer: on_progress(f"projecting {layer}", *news))
        findings["projection_seconds"][layer], findings["drawing_seconds"][layer] = spent
        if not share.worker:
            _write_settings(output, settings, findings)
    if not share.worker:
        _write_page(output, settings, findings)
    return {**settings, **findings}


def file_names(layers):
    """`{layer: name of its files}`: a layer's name may hold what a file's must not."""
    names = {}
    for layer in layers:
        name = re.sub(r"[^A-Za-z0-9_-]", "_", layer)[:100]
        if name.startswith("scan-") or name in ("index", "gallery"):  # Files that are there anyway.
            name = f"layer-{name}"
        others = (f"{name}-{count}" for count in range(2, len(layers) + 2))
        names[layer] = next(one for one in (name, *others) if one not in names.values())
    return names


def _chosen_maps(feature_maps, layer, count):
    if feature_maps is None:
        return np.arange(count, dtype=np.int32)
    chosen = sorted(set(map(int, feature_maps)))
    if not chosen or chosen[0] < 0 or chosen[-1] >= count:
        raise ValueError(
            f"{layer} has feature maps 0 to {count - 1}. "
            f"Received: {', '.join(map(str, feature_maps))}."
        )
    return np.array(chosen, np.int32)


def _claim(output, settings, share, on_progress):
    """What is already known of the gallery in a folder, which must be this one or empty."""
    path = output / SETTINGS
    while share.worker and not path.exists():
        on_progress("waiting for worker 1", 0, 1)
        time.sleep(SECONDS_BETWEEN_LOOKS)
    if not path.exists():
        # A hidden file may be what was left of this when it was stopped.
        if output.exists() and (
            not output.is_dir() or any(not path.name.startswith(".") for path in output.iterdir())
        ):
            raise GalleryError(f"{output} holds something else. Expected a new or empty folder.")
        output.mkdir(parents=True, exist_ok=True)
        findings = {"projection_seconds": {}, "drawing_seconds": {}}
        _write_settings(output, settings, findings)
        return findings
    found, findings = _read_settings(output)
    changed = [name for name, value in settings.items() if found.get(name) != value]
    if changed:
        raise GalleryError(
            f"{output} holds a gallery with another {' and '.join(changed)}. "
            "Expected the same, or a new folder."
        )
    return findings


def _read_settings(output):
    path = output / SETTINGS
    try:
        read = json.loads(path.read_text())
        settings, findings = read["settings"], read["findings"]
        whole = set(settings) >= SETTING_NAMES and "projection_seconds" in findings
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise GalleryError(f"{path} is damaged.") from error
    if not whole:
        raise GalleryError(f"{path} is damaged, or of another version of zfkeras.")
    return settings, findings


def _write_settings(output, settings, findings):
    with replacing(output / SETTINGS) as beside:
        beside.write_text(json.dumps({"settings": settings, "findings": findings}, indent=2))


def _scan(scan, deconvnet, trained, pictures, output, batch_size, share, on_progress):
    """Looks at a worker's own pictures.

    Returns:
        The numbers of those that cannot be read, and the seconds that it took.
    """
    state = _state(output, share.worker, share)
    seen = ~batches.own_pictures(pictures.count, share)
    first, seconds = 0, 0.0
    if state.exists():
        first, lost, seconds = _restore(scan, state)
        seen[:first] = True
        seen[lost] = False
    input_size, started = deconvnet.input_shape[:2], time.monotonic()
    mean_image = tf.constant(trained.mean_image)

    @tf.function(autograph=False)
    def prepare(squares):
        return scan.strategy.run(
            lambda part: images.centre_crop(images.subtract_mean(part, mean_image), input_size),
            (squares,),
        )

    def numbered(devices):
        own = dataclasses.replace(share, replicas=devices.replicas)
        return batches.numbered_batches(pictures, batch_size, first, own)

    iterator = distribute(scan.strategy, numbered) if first < pictures.count else None
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
            seconds += time.monotonic() - started
            started = saved = time.monotonic()
            _save(scan, first, np.flatnonzero(~seen[:first]), seconds, state)
    return np.flatnonzero(~seen).tolist(), round(seconds, 1)


def _state(output, worker, share):
    return output / f"scan-{worker + 1}of{share.workers}.npz"


def _save(scan, first, unreadable, seconds, path):
    arrays = {
        f"{layer}/{name}": getattr(found, name)
        for layer, found in scan.exemplars.items()
        for name in ARRAYS
    }
    with replacing(path) as beside, beside.open("wb") as file:
        np.savez(file, first=first, unreadable=unreadable, seconds=seconds, **arrays)


def _restore(scan, path):
    """Adds a saved scan; gives its next picture, the unreadable ones, and the seconds it took."""
    keys = [f"{layer}/{name}" for layer in scan.exemplars for name in ARRAYS]
    state = _read_arrays(path, ["first", "unreadable", "seconds", *keys])
    for layer in scan.exemplars:
        found = Exemplars(layer, **{name: state[f"{layer}/{name}"] for name in ARRAYS})
        scan.exemplars[layer] = scan.exemplars[layer].merged(found)
    return int(state["first"]), state["unreadable"].tolist(), float(state["seconds"])


def _merge(scan, output, count, worker, share, on_progress):
    """Adds what another worker has found, once it has; gives the pictures it could not read."""
    path = _state(output, worker, share)
    while True:
        if path.exists():
            first = int(_read_arrays(path, ["first"])["first"])
            if first == count:
                return _restore(scan, path)[1]
            on_progress(f"waiting for worker {worker + 1}", first, count)
        time.sleep(SECONDS_BETWEEN_LOOKS)


class _LayerWork:
    """Projecting and drawing one layer, in parts that fit into memory and that workers share.

    Args:
        exemplars: The layer's `Exemplars`.
        chosen: int array, which feature maps.
        file: Name of the layer's files.
    """

    def __init__(
        self, deconvnet, exemplars, chosen, trained, pictures, output, file, batch_size, share
    ):
        self._deconvnet, self._exemplars, self._trained = deconvnet, exemplars, trained
        self._pictures, self._batch_size, self._share = pictures, batch_size, share
        self._folder, self._whole = output / file, output / f"{file}.npz"
        height, width = deconvnet.window_size(exemplars.layer)
        pixels = chosen.size * exemplars.pictures.shape[1] * height * width * 3
        bytes_needed = pixels * (np.dtype(np.float32).itemsize + np.dtype(np.uint8).itemsize)
        count = min(max(-(-bytes_needed // MOST_BYTES), share.workers), chosen.size)
        self._parts = [
            (output / f".{file}-{index + 1}of{count}.npz", maps)
            for index, maps in enumerate(np.array_split(chosen, count))
        ]

    def do(self, on_progress):
        """Does this worker's part of it; gives the seconds spent projecting and drawing."""
        projecting, drawing = 0.0, 0.0
        for path, maps in self._parts[self._share.worker :: self._share.workers]:
            # In this order: parts go away once the whole is there.
            if path.exists() or self._whole.exists():
                continue
            started = time.monotonic()
            with naming_broken_pictures(self._pictures.source):
                made = self._project(maps, on_progress)
            projected = time.monotonic()
            _draw_maps(made, self._folder)
            drawn = time.monotonic()
            made.save(path, compress=len(self._parts) == 1)
            projecting += projected - started + time.monotonic() - drawn
            drawing += drawn - projected
        if not self._share.worker:
            started = time.monotonic()
            self._wait(on_progress)
            paths = [path for path, _ in self._parts]
            projecting += time.monotonic() - started
            if not self._whole.exists():
                started = time.monotonic()
                _draw_layer(paths, self._folder)
                drawing += time.monotonic() - started
                started = time.monotonic()
                _join(paths, self._whole)
                projecting += time.monotonic() - started
            for path in paths:
                path.unlink(missing_ok=True)
        return round(projecting, 1), round(drawing, 1)

    def _wait(self, on_progress):
        while not self._whole.exists():
            there = sum(path.exists() for path, _ in self._parts)
            if there == len(self._parts):
                return
            on_progress(there, len(self._parts))
            time.sleep(SECONDS_BETWEEN_LOOKS)

    def _project(self, chosen, on_progress):
        exemplars, pictures = self._exemplars, self._pictures
        units = {name: getattr(exemplars, name)[chosen] for name in ARRAYS}
        shape = units["pictures"].shape
        flat = {name: array.ravel() for name, array in units.items()}
        flat["feature_maps"] = np.repeat(chosen, shape[1])
        fired = np.flatnonzero(flat["pictures"] >= 0)
        size = self._deconvnet.window_size(exemplars.layer)
        boxes, windows = (np.zeros((flat["pictures"].size, 4), np.int32) for _ in range(2))
        projections = np.zeros((flat["pictures"].size, *size, 3), np.float32)
        patches = np.full(projections.shape, rendering.GREY, np.uint8)
        names = np.full(flat["pictures"].size, "", object)
        input_size, done = self._deconvnet.input_shape[:2], 0
        wanted = np.unique(flat["pictures"][fired])
        for squares, numbers in batches.chosen_batches(pictures, wanted, self._batch_size):
            inputs = images.centre_crop(
                images.subtract_mean(squares, self._trained.mean_image), input_size
            )
            seen, numbers = images.centre_crop(squares, input_size).numpy(), numbers.numpy()
            own = fired[np.isin(flat["pictures"][fired], numbers)]
            owners = np.searchsorted(numbers, flat["pictures"][own])
            found = self._deconvnet.project_in_windows(
                inputs,
                exemplars.layer,
                owners,
                *(flat[name][own] for name in ("feature_maps", "rows", "columns")),
                batch_size=self._batch_size,
            )
            boxes[own], windows[own] = found.boxes, found.windows
            projections[own] = found.projections
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


def _join(paths, whole):
    """Puts the parts of a layer together, one array of one part in memory at a time."""
    if len(paths) == 1:
        paths[0].replace(whole)
        return
    with replacing(whole) as beside, zipfile.ZipFile(beside, "w", zipfile.ZIP_DEFLATED) as archive:
        for field in dataclasses.fields(LayerGallery):
            with archive.open(f"{field.name}.npy", "w", force_zip64=True) as file:
                if field.name == "layer":
                    np.lib.format.write_array(file, _read_arrays(paths[0], ["layer"])["layer"])
                    continue
                shapes, kinds = zip(
                    *(_shape_and_kind(path, field.name) for path in paths), strict=True
                )
                kind = np.result_type(*kinds)  # Names may be longer in another part.
                header = {
                    "descr": np.lib.format.dtype_to_descr(kind),
                    "fortran_order": False,
                    "shape": (sum(shape[0] for shape in shapes), *shapes[0][1:]),
                }
                np.lib.format.write_array_header_2_0(file, header)
                for path in paths:
                    part = _read_arrays(path, [field.name])[field.name]
                    file.write(np.ascontiguousarray(part, kind).data.cast("B"))


def _shape_and_kind(path, name):
    """Of an array in an `.npz` file, without reading the array."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as file:
            np.lib.format.read_magic(file)
            shape, _, kind = np.lib.format.read_array_header_1_0(file)
            return shape, kind
    except DAMAGED as error:
        raise GalleryError(f"{path} is damaged.") from error


def _draw_maps(made, folder):
    """One sheet for every feature map."""
    for index, feature_map in enumerate(made.feature_maps):
        rendering.save(_draw_map(made, index, rendering.TILE), folder / f"{feature_map:04}.png")


def _draw_layer(paths, folder):
    """One sheet for the layer, from the files of its parts."""
    small = []
    for path in paths:
        made = LayerGallery.load(path)
        small += [
            _draw_map(made, index, LAYER_SHEET_TILE) for index in range(len(made.feature_maps))
        ]
    columns = min(LAYER_SHEET_COLUMNS, len(small))
    sheet = rendering.contact_sheet(small, columns, gap=4 * rendering.GAP)
    rendering.save(sheet, folder.with_suffix(".png"))


def _draw_map(made, index, size):
    left, right = (
        rendering.contact_sheet([rendering.enlarge(tile, size) for tile in tiles])
        for tiles in (
            [rendering.draw_signed(one) for one in made.projections[index]],
            list(made.patches[index]),
        )
    )
    gap = np.full((len(left), rendering.GAP, 3), rendering.BACKGROUND, np.uint8)
    return np.concatenate([left, gap, right], axis=1)


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
    sections, files = [], file_names(settings["layers"])
    for layer, file in files.items():
        arrays = _read_arrays(output / f"{file}.npz", ["feature_maps", "activations"])
        feature_maps, strongest = arrays["feature_maps"], arrays["activations"][:, 0]
        figures, name = [], html.escape(layer)
        for feature_map, activation in zip(feature_maps, strongest, strict=True):
            path = f"{file}/{feature_map:04}.png"
            fired = f"{activation:.4g}" if activation > 0 else "never fired"
            figures.append(
                f'<figure id="{file}-{feature_map}"><a href="{path}"><img loading="lazy" '
                f'src="{path}" alt="{name}, feature map {feature_map}"></a>'
                f"<figcaption>map {feature_map}: {fired}</figcaption></figure>"
            )
        sections.append(
            f'<h2 id="{file}">{name}</h2>\n<p><a href="{file}.png">All on one sheet</a>, '
            f'<a href="{file}.npz">all numbers</a></p>\n<div class="maps">'
            + "\n".join(figures)
            + "</div>"
        )
    page = _PAGE.substitute(
        top_k=settings["top_k"],
        repeats=settings["repeats"],
        count=f"{settings['pictures'] - len(findings['unreadable']):,}",
        dataset=html.escape(settings["dataset"]),
        layers=", ".join(
            f'<a href="#{file}">{html.escape(layer)}</a>' for layer, file in files.items()
        ),
        sections="\n".join(sections),
    )
    with replacing(output / "index.html") as beside:
        beside.write_text(page, encoding="utf-8")
