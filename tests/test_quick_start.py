"""README's training command, as a newcomer types it."""

import re
import shlex
import subprocess
import sys

from conftest import ROOT


def test_the_readmes_training_learns_the_shapes(tmp_path):
    readme = (ROOT / "README.md").read_text()
    (line,) = re.findall(r"^    zfkeras-train (.*--dataset shapes.*)$", readme, re.MULTILINE)
    program = "from zfkeras.cli import train; train()"

    printed = subprocess.check_output(
        [sys.executable, "-c", program, *shlex.split(line)], text=True, cwd=tmp_path
    )

    error = re.fullmatch(r"Top-1 error ([\d.]+)%, .* on 300 .*", printed.splitlines()[-1])
    # Measured: 7.0 %. By chance it would be 83 %.
    assert float(error.group(1)) < 10
