"""Temporary files where the root may be read-only."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ddcat.errors import WriteError

__all__ = ["temporary_directory"]

_SHARED_MEMORY = Path("/dev/shm")  # containers have it, those with a read-only root too


@contextlib.contextmanager
def temporary_directory() -> Iterator[Path]:
    """
    Make a directory that is removed at the end: where TMPDIR says, in /tmp or its like, or in shared memory.

    Raises
    ------
    WriteError
        Where none of them is writable.
    """
    try:
        made = tempfile.TemporaryDirectory()
    except OSError:
        try:
            made = tempfile.TemporaryDirectory(dir=_SHARED_MEMORY)
        except OSError as cause:
            raise WriteError(
                "no folder for temporary files is writable: set TMPDIR to one that is, or mount a tmpfs at /tmp"
            ) from cause
    with made as name:
        yield Path(name)
