"""A lock for one process at a time, which ends with the process that holds it."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from ddcat.atomic_files import translate_os_errors
from ddcat.errors import DdcatError, WriteError

try:
    import fcntl
except ImportError:  # Windows: no lock, as before
    fcntl = None  # type: ignore[assignment]

__all__ = ["locked"]


@contextlib.contextmanager
def locked(file: Path, message: str) -> Iterator[None]:
    """
    Hold a lock on a file, which is made for it and removed at the end, as are the folders made for it that stay empty.

    Parameters
    ----------
    file : Path
        A leftover of a process that was killed is no lock.
    message : str
        Message of the error.

    Raises
    ------
    DdcatError
        At once, where another process holds the lock.
    WriteError
        Where the file cannot be made.
    """
    if fcntl is None:
        yield
        return
    new = [folder for folder in file.parents if not folder.exists()]
    descriptor = _take(file, message)
    try:
        yield
    finally:
        if _still_there(file, descriptor):  # else it was removed, and may be the lock of another process by now
            file.unlink(missing_ok=True)  # before the lock ends: whoever comes next makes a file of its own
        os.close(descriptor)
        with contextlib.suppress(OSError):  # one that holds something stays, and those above it
            for folder in new:
                folder.rmdir()


def _take(file: Path, message: str) -> int:
    if file.parent.exists() and not file.parent.is_dir():
        raise WriteError(f"cannot write into {file.parent}, which is not a folder: name another one")
    while True:
        with translate_os_errors(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as cause:
            os.close(descriptor)
            raise DdcatError(message) from cause
        except OSError:  # a file system without locks
            return descriptor
        if _still_there(file, descriptor):
            return descriptor
        os.close(descriptor)  # its holder removed it between the two calls


def _still_there(file: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(file.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
