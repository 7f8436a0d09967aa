"""`python -m zfkeras`."""

from zfkeras.cli import cli

cli()
