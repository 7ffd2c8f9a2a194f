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
    Read a regular file of limited size. Nothing else is opened: a pipe would wait for ever, a device never end.

    Parameters
    ----------
    path : Path
    most : int
        Bytes that the file may have.
    error : type of DdcatError
        What is raised for a file of another kind, or a larger one.

    Raises
    ------
    OSError
        Where there is no such file, or it must not be read.
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
