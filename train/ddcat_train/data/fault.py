"""Faults of the files of a pair."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

__all__ = ["Fault"]


@dataclass(frozen=True)
class Fault:
    """
    Something that is wrong with a pair.

    Attributes
    ----------
    kind : str
        "missing" or "unreadable" for a file; "size" where the two differ in size; "value" for a label that is neither a class
        nor ignored, "colour" for a colour that is neither.
    message : str
        One line for the user, which names the file.
    value, pixels : int or None
        The value in the file, for a fault of kind "value", and the number of pixels of a "value" or "colour".
    """

    kind: Literal["missing", "unreadable", "size", "value", "colour"]
    file: Path
    message: str
    value: int | None = None
    pixels: int | None = None
