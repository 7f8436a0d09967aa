"""Real processes that make a gallery, killed without warning, alone and as two workers."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zfkeras.gallery import LayerGallery

COUNT, BROKEN = 24, 13
# As `zfkeras gallery` is run, but that it saves at once and takes its time after the first batch.
GALLERY = """
import itertools, sys, time
seconds, batch = float(sys.argv.pop(1)), itertools.count()
from zfkeras import exemplars, gallery
from zfkeras.cli import cli
gallery.SECONDS_BETWEEN_SAVES, gallery.SECONDS_BETWEEN_LOOKS = 0, 0.1
update = exemplars.Scan.update
def slow(*arguments):
    time.sleep(seconds if next(batch) else 0)
    update(*arguments)
exemplars.Scan.update = slow
cli()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pictures without classes, some of them alike, one of them broken."""
    root, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for index in range(COUNT):
        picture = rng.integers(0, 255, (45, 50, 3), dtype=np.uint8)
        if index % 6 != 5:
            Image.fromarray(picture).save(root / f"{index:02}.png")
            last = root / f"{index:02}.png"
        else:  # Ties, which workers meet in another order.
            (root / f"{index:02}.png").write_bytes(last.read_bytes())
    (root / f"{BROKEN:02}.png").write_bytes(b"no picture")
    return root


def start(export_dir, folder, output, worker=0, workers=1, seconds=0.0):
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    arguments = ["gallery", str(export_dir), "--dataset", str(folder), "--output", str(output)]
    arguments += ["--layers", "conv1,conv3", "--top", "3", "--repeats", "2", "--batch-size", "4"]
    if workers > 1:
        arguments += ["--strategy", "multi_worker_mirrored"]
        # Nobody listens there: the workers share the folder and nothing else.
        cluster = {"worker": [f"127.0.0.1:{port}" for port in range(1, workers + 1)]}
        environment["TF_CONFIG"] = json.dumps(
            {"cluster": cluster, "task": {"type": "worker", "index": worker}}
        )
    return subprocess.Popen(
        [sys.executable, "-c", GALLERY, str(seconds), *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(processes):
    for process in processes:
        output, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        yield output


@pytest.fixture(scope="module")
def whole(export_dir, folder, tmp_path_factory):
    output = tmp_path_factory.mktemp("whole") / "gallery"
    (said,) = finish([start(export_dir, folder, output)])
    assert "1 pictures cannot be read and were left out" in said
    return output


@pytest.mark.parametrize("workers", [1, 2])
def test_killed_workers_make_the_same_gallery(export_dir, folder, whole, tmp_path, workers):
    output = tmp_path / "gallery"
    states = [output / f"scan-{worker + 1}of{workers}.npz" for worker in range(workers)]
    slow = [start(export_dir, folder, output, worker, workers, 60) for worker in range(workers)]
    deadline = time.monotonic() + 60
    while not all(state.exists() for state in states) and time.monotonic() < deadline:
        time.sleep(0.05)
    for process in slow:
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    for state in states:
        with np.load(state) as found:
            assert 0 < found["first"] < COUNT / 2  # There is something left to do.
    assert not list(output.glob("conv*.npz"))

    # The worker that finishes first waits for the other one, and the other way round.
    again = [start(export_dir, folder, output, worker, workers) for worker in range(workers)][::-1]
    list(finish(again))

    findings = json.loads((output / "gallery.json").read_text())["findings"]
    assert [Path(path).name for path in findings["unreadable"]] == [f"{BROKEN}.png"]
    for name in ("conv1.npz", "conv3.npz"):
        found, wanted = LayerGallery.load(output / name), LayerGallery.load(whole / name)
        for array in ("feature_maps", "pictures", "names", "rows", "columns", "boxes", "patches"):
            np.testing.assert_array_equal(getattr(found, array), getattr(wanted, array))
        limit = 1e-5 * np.abs(wanted.projections).max()
        np.testing.assert_allclose(found.activations, wanted.activations, rtol=1e-5)
        np.testing.assert_allclose(found.projections, wanted.projections, atol=limit)
    files = {str(path.relative_to(output)) for path in output.rglob("*.*") if path.is_file()}
    wanted = {str(path.relative_to(whole)) for path in whole.rglob("*.*") if path.is_file()}
    assert files - {state.name for state in states} == wanted - {"scan-1of1.npz"}
