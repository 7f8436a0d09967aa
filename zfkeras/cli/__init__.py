"""The commands `zfkeras` and `zfkeras-train`.

Commands parse, call the library, write, and say one line. TensorFlow and what needs it are
imported inside them: that takes seconds, and `--help` should be instant.
"""

import click

from zfkeras import __version__
from zfkeras.cli.correspondence import correspondence
from zfkeras.cli.demo import demo
from zfkeras.cli.evaluate import evaluate
from zfkeras.cli.evolution import evolution
from zfkeras.cli.export import export_run
from zfkeras.cli.gallery import gallery
from zfkeras.cli.invariance import invariance
from zfkeras.cli.occlusion import occlusion
from zfkeras.cli.project import project
from zfkeras.cli.train import train

__all__ = ["cli", "train"]


@click.group()
@click.version_option(__version__)
def cli():
    """See what convolutional networks learn (Zeiler & Fergus, 2014)."""


for command in (
    project,
    demo,
    gallery,
    occlusion,
    invariance,
    correspondence,
    evolution,
    evaluate,
    export_run,
):
    cli.add_command(command)
