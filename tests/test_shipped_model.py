"""The trained model that ships in `exported/`."""

import re

import numpy as np
import pytest
from conftest import ROOT

from zfkeras import export, rendering
from zfkeras.data import datasets
from zfkeras.data.pictures import read_picture
from zfkeras.training.evaluation import Evaluator

FOLDER = ROOT / "exported" / "zfnet-imagenette"


@pytest.fixture(scope="module")
def shipped():
    return export.load(FOLDER)


def test_it_is_small_enough_to_ship():
    files = [path for path in (FOLDER / "1").rglob("*") if path.is_file()]

    assert sum(path.stat().st_size for path in files) <= 20 * 2**20


def test_it_carries_no_path_of_the_machine_that_made_it():
    """A graph remembers the source file of every operation unless it is told not to."""
    for path in (FOLDER / "1").rglob("*"):
        if path.is_file():
            assert not re.search(rb"/[\w./-]+\.py\b", path.read_bytes()), path


def test_its_card_is_complete(shipped):
    card = shipped.card

    assert card["class_names"] == list(datasets.SYNSET_NAMES.values())
    assert card["command"].startswith("zfkeras-train --dataset imagenette160 ")
    assert card["errors"]["count"] == 3925
    assert card["errors"]["top1"] <= 0.2
    assert card["errors"]["top1"] == card["metrics"][-1]["validation_top1_error"]
    assert len(card["metrics"]) == card["epochs"] == card["training"]["epochs"]


@pytest.mark.data
def test_it_has_the_error_that_its_card_states(shipped, imagenette):
    model, mean_image = shipped.restore()
    loaded = datasets.load(str(imagenette), "validation", len(mean_image))

    errors = Evaluator([model], [mean_image])(loaded).errors

    assert errors.count == 3925
    # Another machine sums in another order, which may decide a close call or two otherwise.
    assert errors.top1 == pytest.approx(shipped.card["errors"]["top1"], abs=2.5 / 3925)
    assert errors.top5 == pytest.approx(shipped.card["errors"]["top5"], abs=2.5 / 3925)


def test_the_drawn_filters_are_its_own(shipped):
    drawn = rendering.filter_sheet(shipped.first_layer_filters(), export.FILTER_COLUMNS)

    np.testing.assert_array_equal(read_picture(shipped.path / "filters.png"), drawn)


def test_its_filters_are_learned(shipped):
    """Trained filters are smoother than the noise they began as."""
    filters = shipped.first_layer_filters()
    steps = np.square(np.diff(filters, axis=1)).mean() + np.square(np.diff(filters, axis=2)).mean()

    # For independent weights a step's mean square is twice their variance in each direction.
    assert steps < 0.75 * 4 * filters.var()
