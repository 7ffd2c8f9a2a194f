"""The bytes of a data set's files: regular files of a bounded size alone, each found by the name that a list gives it."""

import os
import stat
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path

from ddcat.regular_files import kind_of
from ddcat_train.errors import DataError

__all__ = [
    "IMAGES", "LABELS", "PICTURES", "SCENES", "Finder", "hidden", "is_file", "read_bytes", "read_text", "same_name", "walk",
]  # fmt: skip

IMAGES = (".jpg", ".jpeg", ".png")  # suffixes of what is read, in lower case
SCENES = (".tif", ".tiff")  # read where a configuration names bands
LABELS = (".png",)
PICTURES = (*IMAGES, *SCENES, ".bmp", ".gif", ".jp2", ".webp")  # what a person would call an image

_MOST_BYTES = 1 << 30  # more than any image of the size that is read has
_JUNK = {"__MACOSX", "@eaDir", "lost+found"}  # folders that operating systems leave


def read_bytes(path: Path, *, most: int = _MOST_BYTES, first: int | None = None) -> bytes:
    """
    Read a regular file, whole or its first bytes.

    Raises
    ------
    DataError
        Where it is missing, a folder, a pipe or a device, or has more than `most` bytes.
    """
    try:
        # a pipe without a writer would never open, and reading some devices never ends
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise DataError(f"{path} is {kind_of(status.st_mode)}, expected a regular file: put the file itself there")
            if status.st_size > most:
                raise DataError(f"{path} has {status.st_size:,} bytes: at most {most:,} are read")
            with open(descriptor, "rb", closefd=False) as file:
                return file.read(most if first is None else first)
        finally:
            os.close(descriptor)
    except FileNotFoundError as cause:
        raise DataError(f"{path} is missing{_beside(path)}") from cause
    except OSError as cause:
        raise DataError(f"cannot read {path}: {cause.strerror or cause}") from cause
    except ValueError as cause:  # a NUL in its name
        raise DataError(f"cannot read {path}: no file can have such a name") from cause


def read_text(path: Path, *, most: int = 1 << 26) -> str:
    """
    Read a text file in UTF-8, with or without a byte order mark.

    Raises
    ------
    DataError
        Also where it is of another encoding, or no text.
    """
    content = read_bytes(path, most=most)
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(f"{path} is not UTF-8 but UTF-16: save it as UTF-8")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as cause:
        line = content.count(b"\n", 0, cause.start) + 1
        raise DataError(f"{path} is not UTF-8 (line {line}): save it as UTF-8") from cause
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise DataError(f"{path} is not a text file: line {line} holds a NUL; save it as UTF-8")
    return text


def is_file(path: Path) -> bool:
    """Return True for a regular file; False for a name that no file can have."""
    return os.path.isfile(path)


def hidden(name: str) -> bool:
    """Return True for the files of operating systems and editors: `._x.jpg`, `.ipynb_checkpoints`, `__MACOSX`."""
    return name.startswith(".") or name in _JUNK


def same_name(name: str) -> str:
    """Return a name in the one of its Unicode forms by which names are compared: macOS and Linux write accents differently."""
    return unicodedata.normalize("NFC", name)


def walk(folder: Path) -> Iterator[Path]:
    """Yield the files in a folder and in its sub-folders in the order of their names, without those that are `hidden`."""
    yield from _walk(folder, frozenset())


def _walk(folder: Path, above: frozenset[Path]) -> Iterator[Path]:
    real = folder.resolve()
    if real in above:  # a link to a folder that it lies in
        return
    try:
        entries = sorted((entry for entry in os.scandir(folder) if not hidden(entry.name)), key=lambda entry: entry.name)
    except OSError as cause:
        raise DataError(f"cannot read the folder {folder}: {cause.strerror or cause}") from cause
    for entry in entries:
        if os.path.isdir(entry):  # and not entry.is_dir(), which raises at a link to itself
            yield from _walk(folder / entry.name, above | {real})
        else:
            yield folder / entry.name


class Finder:
    """Finds the files that names mean; it looks into every folder once."""

    def __init__(self) -> None:
        self._folders: dict[Path, dict[tuple[str, str], str]] = {}

    def find(self, path: Path, suffixes: Sequence[str]) -> Path:
        """
        Find a file: with one of the suffixes, in capitals or not, and in any Unicode form of its name.

        Parameters
        ----------
        path : Path
            The name, with the suffix that is expected; where there is such a file, that is it.
        suffixes : sequence of str
            In lower case, the first preferred.

        Returns
        -------
        Path
            `path` itself where there is no such file.
        """
        if is_file(path):
            return path
        if path.suffix and not path.suffix[1:].isalnum():  # such as that of "x.png and more", which is no other form of x.png
            return path
        there = self._names(path.parent)
        names = (there.get((same_name(path.stem), suffix)) for suffix in suffixes)
        return next((path.with_name(name) for name in names if name is not None), path)

    def _names(self, folder: Path) -> dict[tuple[str, str], str]:
        """Return the names of the files in a folder by stem, in a comparable form, and suffix, in lower case."""
        if folder not in self._folders:
            try:
                names = sorted(entry.name for entry in os.scandir(folder) if os.path.isfile(entry) and not hidden(entry.name))
            except (OSError, ValueError):
                names = []
            # of x.PNG and x.png the second comes later in the order of the names, and stays
            self._folders[folder] = {(same_name(Path(name).stem), Path(name).suffix.lower()): name for name in names}
        return self._folders[folder]


def _beside(path: Path) -> str:
    near = [name for suffix in PICTURES if is_file(path.with_name(name := path.stem + suffix))]
    if not near:
        return ""
    mask = path.suffix.lower() in LABELS
    bands = ", or read TIFF by the layout folder and data.bands" if near[0].lower().endswith(SCENES) and not mask else ""
    return f"; {near[0]} is there: convert it to {'PNG' if mask else 'JPEG or PNG'}{bands}"
