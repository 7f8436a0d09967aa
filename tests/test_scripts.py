"""The scripts run; what they measure is not judged here."""

import json
import subprocess
import sys

from conftest import ROOT


def test_the_benchmark_prints_and_saves_what_it_measured(tmp_path):
    key = "all_reduces_per_second_mirrored"
    script = [sys.executable, str(ROOT / "scripts/benchmark.py"), "--only", key]

    printed = subprocess.check_output([*script, "--json", tmp_path / "figures.json"], text=True)

    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures[key] > 0
    assert printed.split() == [key, f"{figures[key]:.1f}"]
