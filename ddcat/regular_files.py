"""Reading files of others, which may be anything: a pipe that never ends, a terabyte of nothing, a link to elsewhere."""

import os
import stat
from pathlib import Path

from ddcat.errors import DdcatError

__all__ = ["kind_of", "read_regular"]

_KINDS = {
    stat.S_IFREG: "a regular file",
    stat.S_IFDIR: "a directory",
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def read_regular(path: Path, *, most: int, error: type[DdcatError] = DdcatError) -> bytes:
    """
    Read a regular file of limited size. Other kinds are not opened: a pipe would block, a device never end.

    Parameters
    ----------
    path : Path
    most : int
        Largest size, in bytes.
    error : type of DdcatError
        Raised for a file of another kind, or a larger one.

    Raises
    ------
    OSError
        Where the file does not exist or may not be read.
    """
    _check_regular(path, path.lstat(), error)
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    with open(path, "rb", opener=lambda name, _: os.open(name, flags)) as file:
        status = os.fstat(file.fileno())
        _check_regular(path, status, error)  # it may have been replaced since
        content = file.read(min(status.st_size, most) + 1)
    if max(len(content), status.st_size) > most:
        raise error(f"{path} is too large: {max(len(content), status.st_size)} bytes, expected {most} at most")
    return content


def kind_of(mode: int) -> str:
    """Name the kind of a file by its `st_mode`, with an article."""
    return _KINDS.get(stat.S_IFMT(mode), "a special file")


def _check_regular(path: Path, status: os.stat_result, error: type[DdcatError]) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise error(f"{path} is {kind_of(status.st_mode)}, expected a regular file: put the file itself there")
