"""The number of a TIFF's directories, before GDAL lists them all: that takes time and memory for each of up to a million."""

import struct
from typing import BinaryIO

__all__ = ["has_more_directories"]

_ORDERS = {b"II": "<", b"MM": ">"}
_KINDS = {42: (4, "H", 12, "I"), 43: (8, "Q", 20, "Q")}  # place of the first pointer; count, bytes of an entry, pointer


def has_more_directories(file: BinaryIO, most: int) -> bool:
    """Return whether the chain of directories is longer; one that is damaged ends where it cannot be followed."""
    try:
        order = _ORDERS[file.read(2)]
        first, count, each, pointer = _KINDS[_number(file, f"{order}H")]
        file.seek(first)
        for _ in range(most + 1):
            place = _number(file, order + pointer)
            if place == 0:
                return False
            file.seek(place)
            file.seek(each * _number(file, order + count), 1)
    except (KeyError, OSError, OverflowError, ValueError, struct.error):
        return False
    return True


def _number(file: BinaryIO, form: str) -> int:
    (number,) = struct.unpack(form, file.read(struct.calcsize(form)))
    return int(number)
