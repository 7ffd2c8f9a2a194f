"""Lists of images, as Pascal VOC and CamVid have them: one image a line."""

import os
import re
from collections.abc import Callable
from pathlib import Path

from ddcat.text import printable
from ddcat_train.data.files import Finder, hidden, is_file, read_text
from ddcat_train.errors import DataError

__all__ = ["columns_of", "other_lists", "read_list"]


def read_list(path: Path) -> list[str]:
    """
    Read the lines of a list; empty ones are passed over.

    Raises
    ------
    DataError
        Where it cannot be read, is no regular file, or is empty; where it is missing, the lists beside it are named.
    """
    path = Finder().find(path, (".txt",))
    if not os.path.exists(path):
        beside = ", ".join(other_lists(path)) or "none"
        raise DataError(
            f"the list {path} is missing; splits that have a list there: {beside} (training takes one by "
            "--set data.train_split=NAME)"
        )
    lines = [line.strip() for line in re.split(r"\r\n|\r|\n", read_text(path))]
    lines = [line for line in lines if line]
    if not lines:
        raise DataError(f"the list {path} is empty, expected one image a line")
    return lines


def other_lists(path: Path) -> list[str]:
    """Return the names of the splits that have a list beside this one."""
    return sorted(
        file.stem for file in path.parent.glob("*.txt") if file.name != path.name and is_file(file) and not hidden(file.name)
    )


def columns_of(line: str, path: Path, *, named: Callable[[str], bool], there: Callable[[str], bool]) -> tuple[str, ...]:
    """
    Divide a line into its one or two columns; blanks may be part of a name, and back-slashes separate folders, too.

    Parameters
    ----------
    path : Path
        The list, for the message.
    named : callable
        Whether a text is the name of an image that exists.
    there : callable
        Whether a text is the path of a file that exists.

    Raises
    ------
    DataError
        Where there are more columns.
    """
    for text in dict.fromkeys((line, line.replace("\\", "/"))):
        if named(text):
            return (text,)
        for blank in re.finditer(r"\s+", text):
            image, labels = text[: blank.start()], text[blank.end() :]
            if there(image) and there(labels):
                return image, labels
    words = text.split("\t") if "\t" in text else text.split()
    if len(words) > 2:
        raise DataError(
            f"{path}: {printable(line, 100)!r} has {len(words)} columns and is not the name of a file, expected "
            "a name or 'image labels'"
        )
    return tuple(word.strip() for word in words)
