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

    Raises:
        OSError: What the block or the system raised, naming `path`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not `tempfile`: its files are private, and the result should have ordinary permissions.
    beside = path.with_name(f".{path.stem}.{os.getpid()}.{secrets.token_hex(4)}{path.suffix}")
    try:
        yield beside
        beside.replace(path)
    except OSError as error:
        # A full disk does not say of itself what could not be written.
        if error.filename in (None, str(beside)):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        beside.unlink(missing_ok=True)
