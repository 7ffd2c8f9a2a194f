"""Whether a video file is cut off, by the length that its container states: decoders end there without a word."""

import os
import struct
from typing import BinaryIO

from ddcat.errors import DdcatError

__all__ = ["check_end"]

_EBML, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"
_BOXES = {b"ftyp", b"moov", b"mdat", b"moof", b"free", b"skip", b"wide", b"uuid"}  # of MP4 and QuickTime


def check_end(file: BinaryIO) -> None:
    """
    Refuse an MP4, MOV, MKV, WebM or AVI file that is shorter than it states; others, and those that state nothing, pass.

    Raises
    ------
    DdcatError
        The message does not name the file.
    """
    size = file.seek(0, os.SEEK_END)
    head = _at(file, 0, 8)
    if head[:4] == b"RIFF":
        end = _riff_end(file, size)
    elif head[:4] == _EBML:
        end = _matroska_end(file)
    else:
        end = _boxes_end(file, size)
    if end > size:
        raise DdcatError(f"the video is cut off: it has {size} of {end} bytes")


def _at(file: BinaryIO, place: int, count: int) -> bytes:
    file.seek(place)
    return file.read(count)


def _riff_end(file: BinaryIO, size: int) -> int:
    end = 0
    while len(head := _at(file, end, 8)) == 8 and head[:4] == b"RIFF" and end < size:  # of a long video there are several
        (length,) = struct.unpack("<I", head[4:])
        if length in (0, 2**32 - 1):  # its writer was interrupted, or could not go back
            return 0
        end += 8 + length
    return end


def _boxes_end(file: BinaryIO, size: int) -> int:
    end = 0
    while end < size and len(head := _at(file, end, 16)) >= 8 and head[4:8] in _BOXES:
        (length,) = struct.unpack(">I", head[:4])
        if length == 1 and len(head) == 16:
            (length,) = struct.unpack(">Q", head[8:])
        if length < 8:  # 0: up to the end of the file
            return 0
        end += length
    return end


def _matroska_end(file: BinaryIO) -> int:
    length, begin = _ebml_length(file, 4)
    if length is None or _at(file, begin + length, 4) != _SEGMENT:
        return 0
    segment, place = _ebml_length(file, begin + length + 4)
    return 0 if segment is None else place + segment


def _ebml_length(file: BinaryIO, place: int) -> tuple[int | None, int]:
    """Return the length that is written at a place, None if it is not known, and the place behind it."""
    first = _at(file, place, 1)
    if not first or not first[0]:
        return None, place
    count = 9 - first[0].bit_length()  # of bytes: one more than there are zeros before the first bit
    value = int.from_bytes(_at(file, place, count), "big") & ((1 << 7 * count) - 1)
    return (None if value == (1 << 7 * count) - 1 else value), place + count
