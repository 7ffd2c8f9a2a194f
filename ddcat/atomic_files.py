"""Files that are either whole or absent: written aside, flushed to the disk, then renamed."""

import contextlib
import errno
import glob
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from ddcat.errors import DdcatError, WriteError
from ddcat.json_text import parse_json

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = [
    "append_text",
    "atomic_directory",
    "check_absent",
    "check_can_create",
    "check_writable",
    "flush_names",
    "is_temp_file",
    "read_json",
    "remove_temp_files",
    "replacing",
    "translate_os_errors",
    "unfinished",
    "write_bytes",
    "write_in_turn",
    "write_json",
    "write_parts",
    "write_text",
    "written_aside",
]

Created = TypeVar("Created")

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextlib.contextmanager
def translate_os_errors(path: Path, size: int | None = None) -> Iterator[None]:
    """
    Raise the operating system's errors of a write as one line for the user.

    Parameters
    ----------
    path : Path
        The file or folder that is written.
    size : int, optional
        Bytes that are needed, if known.

    Raises
    ------
    WriteError
    """
    try:
        yield
    except OSError as cause:
        fault = f"cannot write {path}: {cause.strerror or cause}"
        if cause.errno not in _FULL:
            advice = "use a shorter name" if cause.errno == errno.ENAMETOOLONG else "use a writable folder"
            raise WriteError(f"{fault}: {advice}") from cause
        needed = "" if size is None else f"{size / 1e6:.1f} MB are needed and "
        free = shutil.disk_usage(_existing(path)).free
        raise WriteError(f"{fault}: {needed}{free / 1e6:.1f} MB are free there; make room") from cause


def write_bytes(path: Path, content: bytes, *, flush_folder: bool = True) -> None:
    """
    Write a file so that no reader ever sees a part of it, creating its folder if necessary.

    Parameters
    ----------
    path : Path
    content : bytes
    flush_folder : bool
        Flush the name of the file to the disk, too. Without it, a crash of the system may leave no file, but never a part.

    Raises
    ------
    WriteError
        The earlier file is unchanged, and nothing else is left.
    """
    with translate_os_errors(path, len(content)):
        path.parent.mkdir(parents=True, exist_ok=True)
        aside, file = _create_beside(path, lambda place: place.open("xb"))
        with _takes_the_place_of(path, aside), file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if flush_folder:
            flush_names(path.parent)


def write_parts(path: Path, parts: Iterable[bytes]) -> None:
    """Write a file as `write_bytes` does, from parts that are made while it is written."""
    with written_aside(path) as aside, aside.open("wb") as file:
        file.writelines(parts)


@contextlib.contextmanager
def written_aside(path: Path, size: int | None = None) -> Iterator[Path]:
    """
    Yield the path of a new file beside another, to be filled; what is there at the end takes the other's place.

    Parameters
    ----------
    path : Path
        Its folder is created if necessary.
    size : int, optional
        Bytes that are needed, if known.

    Raises
    ------
    WriteError
        The earlier file is unchanged, and nothing else is left.
    """
    with translate_os_errors(path, size):
        path.parent.mkdir(parents=True, exist_ok=True)
        aside, _ = _create_beside(path, lambda place: place.touch(exist_ok=False))
        with _takes_the_place_of(path, aside):
            yield aside
            with aside.open("r+b") as whole:  # Windows syncs no file that is open for reading alone
                os.fsync(whole.fileno())
        flush_names(path.parent)


@contextlib.contextmanager
def _takes_the_place_of(path: Path, aside: Path) -> Iterator[None]:
    """Fill a file in the block; it replaces another then, or is removed if the block fails."""
    try:
        yield
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def write_in_turn(path: Path, content: bytes) -> None:
    """
    Write a file as `write_bytes` does, in a folder where no other name than `unfinished` may appear meanwhile.

    Several writers wait for each other; the leftover of a killed writer is overwritten.

    Raises
    ------
    WriteError
        The earlier file is unchanged.
    """
    aside = unfinished(path)
    with translate_os_errors(path, len(content)):
        with _locked(aside) as file:
            try:
                file.truncate(0)
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
                aside.replace(path)
            except BaseException:
                aside.unlink(missing_ok=True)
                raise
        flush_names(path.parent)


def unfinished(path: Path) -> Path:
    """Return the name under which `write_in_turn` prepares a file."""
    return path.with_name(f".{path.name}.new")


def write_text(path: Path, content: str) -> None:
    """Write text as UTF-8, whole or not at all."""
    write_bytes(path, content.encode())


def write_json(path: Path, content: Any) -> None:
    """Write indented JSON, whole or not at all. NaN is refused, because it is not JSON."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def append_text(path: Path, text: str) -> None:
    """
    Append text as UTF-8 to a file, all of it or nothing, and wait until it is on the disk.

    Raises
    ------
    WriteError
    """
    content = text.encode()
    with translate_os_errors(path, len(content)), path.open("ab", buffering=0) as file:
        before = os.fstat(file.fileno()).st_size
        try:
            rest = memoryview(content)
            while rest:  # where room runs out, a part is written first
                rest = rest[file.write(rest) :]
            os.fsync(file.fileno())
        except BaseException:
            file.truncate(before)
            raise


def check_writable(folder: Path) -> None:
    """
    Refuse a folder that is not writable, before the long work; it need not exist yet.

    Raises
    ------
    WriteError
    """
    with translate_os_errors(folder), tempfile.TemporaryFile(dir=_existing(folder)):
        pass


def is_temp_file(path: Path, name: str) -> bool:
    """Return whether a path is the leftover of a `write_bytes` to a file of that name that was killed."""
    return path.match(f".{glob.escape(name)}.{'?' * 8}")


def remove_temp_files(path: Path) -> None:
    """Remove the leftovers of killed `write_bytes` beside a path; no process may be writing it now."""
    for beside in path.parent.iterdir() if path.parent.is_dir() else ():
        if is_temp_file(beside, path.name):
            beside.unlink(missing_ok=True)


def read_json(path: Path, error: type[DdcatError] = DdcatError) -> Any:
    """Read a JSON file; raise `error` with a line for the user where there is none or it is not JSON."""
    try:
        return parse_json(path.read_text(encoding="utf-8"))
    except OSError as cause:
        raise error(f"cannot read {path}: {cause.strerror}") from cause
    except ValueError as cause:
        raise error(f"{path} is not JSON that ddcat reads: {cause}") from cause


def check_can_create(path: Path) -> None:
    """Refuse a path where `atomic_directory` would fail, before the long work."""
    check_absent(path)
    if path.is_mount():
        raise DdcatError(f"{path} is a mount point and cannot be replaced: use a folder inside it")
    check_writable(path.parent)  # where it is filled, and renamed to the path at the end


def check_absent(path: Path) -> None:
    """Refuse a path that is taken: another file, or a directory that is not empty."""
    with translate_os_errors(path):  # a name may be too long, a folder not to be read
        taken = path.exists() and (not path.is_dir() or any(path.iterdir()))
    if taken:
        raise DdcatError(f"{path} exists already: name another one, or remove it first")


@contextlib.contextmanager
def atomic_directory(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """
    Fill a temporary directory and rename it at the end; on an exception nothing is left.

    Parameters
    ----------
    path : Path
        Must not exist, or be an empty directory.
    replace : bool
        Replace an existing directory at the end, whatever it holds.

    Yields
    ------
    Path
        The directory to fill.

    Raises
    ------
    DdcatError
        Where the path exists.
    WriteError
        Where it cannot be written.
    """
    path = path.resolve() if replace else path  # the folder gives way, not a link to it
    if not replace:
        check_absent(path)
    with translate_os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        aside, _ = _create_beside(path, Path.mkdir)
    try:
        yield aside
        with translate_os_errors(path):
            for file in aside.rglob("*"):
                if file.is_file():
                    with file.open("rb") as opened:
                        os.fsync(opened.fileno())
            _put(aside, path)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    flush_names(path.parent)


@contextlib.contextmanager
def replacing(path: Path, known_by: str, *, force: bool) -> Iterator[Path]:
    """
    Yield the path for a new directory: its own, or a temporary one while an earlier directory stays until the new one is whole.

    Parameters
    ----------
    path : Path
    known_by : str
        A file that the earlier directory must hold; other directories are never replaced.
    force : bool
        Allow an earlier directory to be replaced.

    Yields
    ------
    Path
        The path to create; it is moved to `path` at the end, and removed on an exception.

    Raises
    ------
    DdcatError
        Where the path is something else, or an earlier directory may not be replaced.
    WriteError
    """
    if not force or not path.exists() or (path.is_dir() and not any(path.iterdir())):
        check_can_create(path)
        yield path
        return
    if not (path / known_by).is_file():
        raise DdcatError(f"{path} exists already and holds no {known_by}: name another --out")
    whole = path.resolve()
    aside = whole.with_name(f".{whole.name}.{secrets.token_hex(4)}")
    try:
        yield aside
        with translate_os_errors(path):
            _put(aside, whole)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def _put(aside: Path, path: Path) -> None:
    """Rename a directory; an earlier one of that name is moved away first, and removed afterwards."""
    if not path.is_dir():
        aside.replace(path)
        return
    before = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    path.replace(before)
    try:
        aside.replace(path)
    except OSError:
        before.replace(path)
        raise
    shutil.rmtree(before, ignore_errors=True)


def _existing(path: Path) -> Path:
    """Return the path itself, or its nearest parent that exists."""
    return next((place for place in (path, *path.absolute().parents) if os.path.lexists(place)), path)


def _create_beside(path: Path, create: Callable[[Path], Created]) -> tuple[Path, Created]:
    """Create a file or folder under a new name beside a path, which `is_temp_file` recognises, with the umask's permissions."""
    while True:
        aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        with contextlib.suppress(FileExistsError):
            return aside, create(aside)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[BinaryIO]:
    """Open a file, created if necessary, that no other process has locked at the same time."""
    flags = os.O_WRONLY | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    while True:
        with open(path, "wb", opener=lambda name, _: os.open(name, flags, 0o666)) as file:
            if fcntl is not None:
                with contextlib.suppress(OSError):  # a file system without locks
                    fcntl.flock(file, fcntl.LOCK_EX)
            if _is_at(path, file):  # or the one before us has given it its name
                yield file
                return


def _is_at(path: Path, file: BinaryIO) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.lstat())
    except FileNotFoundError:
        return False


def flush_names(path: Path) -> None:
    """Wait until the names of the files in a folder are on the disk."""
    if os.name == "nt":  # directories cannot be opened there
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
