"""Files that are either whole or absent: written aside, flushed to the disk, then renamed."""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ddcat.errors import DdcatError

__all__ = ["check_vacant", "new_directory", "read_json", "write_bytes", "write_json", "write_text"]


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file so that no reader ever sees a part of it, creating its folder if necessary."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    aside = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        aside.chmod(0o666 & ~_umask())  # mkstemp is private to its user, a result is not
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    _sync_directory(path.parent)


def write_text(path: Path, content: str) -> None:
    """Write text as UTF-8, whole or not at all."""
    write_bytes(path, content.encode())


def write_json(path: Path, content: Any) -> None:
    """Write JSON that a person can read, whole or not at all. NaN is refused, for it is not JSON."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def read_json(path: Path, error: type[DdcatError] = DdcatError) -> Any:
    """Read a JSON file; raise `error` with a line for the user where there is none or it is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as cause:
        raise error(f"cannot read {path}: {cause.strerror}") from cause
    except ValueError as cause:
        raise error(f"{path} is not JSON: {cause}") from cause


def check_vacant(path: Path) -> None:
    """Refuse a path that `new_directory` would refuse: before the long work whose result it is to hold."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise DdcatError(f"{path} exists already: name another one, or remove it first")


@contextlib.contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """
    Fill a directory aside and give it its name at the end; on an exception nothing is left.

    Parameters
    ----------
    path : Path
        Must not exist, or be an empty directory.

    Yields
    ------
    Path
        The directory to fill.
    """
    check_vacant(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        yield aside
        for file in aside.rglob("*"):
            if file.is_file():
                with file.open("rb") as opened:
                    os.fsync(opened.fileno())
        aside.chmod(0o777 & ~_umask())
        aside.replace(path)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    _sync_directory(path.parent)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_directory(path: Path) -> None:
    if os.name == "nt":  # directories cannot be opened there
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
