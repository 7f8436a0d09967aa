"""Writing files so that nothing that was there before is lost when writing fails."""

import contextlib
import os
import secrets
from pathlib import Path


@contextlib.contextmanager
def replacing(path):
    """A path beside `path` to write to, which takes its place once the block has succeeded.

    The directory is made if missing. If the block fails, `path` is left as it was.

    Args:
        path: File that will be written.

    Yields:
        Path of a file with the same suffix in the same directory.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not `tempfile`: its files are private, and the result should have ordinary permissions.
    beside = path.with_name(f".{path.stem}.{os.getpid()}.{secrets.token_hex(4)}{path.suffix}")
    try:
        yield beside
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
