"""README's training command, as a newcomer types it."""

import re


def test_the_readmes_training_learns_the_shapes(shapes_run):
    _, printed = shapes_run

    error = re.fullmatch(r"Top-1 error ([\d.]+)%, .* on 300 .*", printed.splitlines()[-1])
    # Measured: 7.0 %. By chance it would be 83 %.
    assert float(error.group(1)) < 10
