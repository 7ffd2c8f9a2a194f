"""
Tensors as JSON, read and written piece by piece.

A parser that makes an object of every number would hold the interpreter for seconds and take a hundred times the memory of the
image. Here other threads wait for one piece at most, and data that is not an image is refused at the first piece.
"""

import math
import re
import sys
from array import array
from collections.abc import Iterator

import msgspec
import numpy as np
import numpy.typing as npt

from ddcat_serve.errors import RequestError, quoted

__all__ = ["MOST", "read_bytes", "write_values"]

MOST = {"UINT8": 255, "UINT16": 65535}  # the largest value of a datatype
_CODES = {"UINT8": "B", "UINT16": "H"}  # of `array`

_PIECE = 2**16  # bytes of text, or values
_VALUES = msgspec.json.Decoder(list[int])
_SPACE = b" \t\r\n"
_WORD = re.compile(rb"[^\s,\[\]]+")


def read_bytes(text: memoryview, shape: list[int], datatype: str = "UINT8") -> bytes:
    """
    Parse the values of a tensor, flat or nested in its shape, from a well-formed JSON array; sizes are at least 1.

    `datatype` is UINT8 or UINT16, whose bytes are little-endian. RequestError (400) if a value is not an integer in its range,
    or if their number does not match the shape.
    """
    count = math.prod(shape)
    nested = bytes(text[1:_PIECE]).lstrip(_SPACE).startswith(b"[")
    # each value but the last takes two bytes at least: a short text with a huge shape ends here, before its form is built
    if 2 * count - 1 > len(text):
        raise _misformed(text, bytes(text[:_PIECE]), shape, nested, datatype)
    form, seen = _form(shape) if nested else b"[" + b"," * (count - 1) + b"]", 0
    values = array(_CODES[datatype])
    for piece in _pieces(text):
        structure = piece.translate(None, b"0123456789" + _SPACE)
        if structure != form[seen : seen + len(structure)]:
            raise _misformed(text, piece, shape, nested, datatype)
        seen += len(structure)
        numbers = piece.translate(None, b"[]" + _SPACE).strip(b",")
        try:
            values.fromlist(_VALUES.decode(b"[%b]" % numbers))
        except (ValueError, OverflowError, msgspec.ValidationError) as cause:
            raise _misvalued(piece, datatype) from cause
    if seen != len(form) or len(values) != count:
        raise _miscounted(text, shape)
    if sys.byteorder == "big":
        values.byteswap()
    return values.tobytes()


def write_values(values: npt.NDArray[np.generic]) -> Iterator[bytes]:
    """Encode a tensor as a flat, row-major JSON array; ValueError for a value that is not finite: JSON has none."""
    flat = values.reshape(-1)
    yield b"["
    for start in range(0, flat.size, _PIECE):
        piece = flat[start : start + _PIECE]
        if not np.isfinite(piece).all():
            raise ValueError("a value is not finite")
        yield (b"," if start else b"") + msgspec.json.encode(piece.tolist())[1:-1]
    yield b"]"


def _form(shape: list[int]) -> bytes:
    """Return the commas and brackets of an array of this shape."""
    form = b""
    for size in reversed(shape):
        form = b"[" + b",".join([form] * size) + b"]"
    return form


def _pieces(text: memoryview) -> Iterator[bytes]:
    """Split text into pieces, but no number."""
    start = 0
    while start < len(text):
        piece = bytes(text[start : start + _PIECE])
        if start + len(piece) < len(text):
            piece = piece.rstrip(b"0123456789") or piece
        yield piece
        start += len(piece)


def _misformed(text: memoryview, piece: bytes, shape: list[int], nested: bool, datatype: str) -> RequestError:
    structure = piece.translate(None, b"0123456789" + _SPACE)
    if structure.strip(b",[]"):
        return _misvalued(piece, datatype)
    if nested or b"[" in structure[1:] or b"]" in structure[:-1]:
        return RequestError(400, f"the data of image is neither flat nor nested as its shape {quoted(shape)}")
    return _miscounted(text, shape)


def _misvalued(piece: bytes, datatype: str) -> RequestError:
    most = MOST[datatype]
    words = (word[0] for word in _WORD.finditer(piece))
    wrong = next((word for word in words if not word.isdigit() or len(word) > len(str(most)) or int(word) > most), b"no number")
    return RequestError(400, f"the data of image holds {quoted(wrong)[2:-1]}; {datatype} takes integers in 0..{most}")


def _miscounted(text: memoryview, shape: list[int]) -> RequestError:
    commas = sum(piece.count(b",") for piece in _pieces(text))
    count = commas + 1 if commas or bytes(text[1:_PIECE]).strip(_SPACE + b"]") else 0
    return RequestError(400, f"the data of image has {count} values; {quoted(shape)} takes {math.prod(shape)}")
