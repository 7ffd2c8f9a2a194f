"""Palette PNGs of label maps, row by row, for masks of any height."""

import struct
import zlib
from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt

from ddcat.classes import Classes, colour_table

__all__ = ["mask_png", "mask_png_parts"]

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_LEVEL = 1  # of zlib: level 6 takes five times as long
_INDEXED = 3


def mask_png(labels: npt.NDArray[np.uint8], classes: Classes) -> bytes:
    """
    Encode labels as a palette PNG of 8 bits per pixel, whose indices are the labels.

    Parameters
    ----------
    labels : (H, W) uint8
    classes : Classes
        Their colours become the palette.
    """
    height, width = labels.shape
    return b"".join(mask_png_parts([labels], height, width, classes))


def mask_png_parts(bands: Iterable[npt.NDArray[np.uint8]], height: int, width: int, classes: Classes) -> Iterator[bytes]:
    """
    Encode the same PNG from bands of rows, and yield its parts as they come.

    Parameters
    ----------
    bands : iterable of (rows, W) uint8
        From top to bottom, `height` rows altogether.
    height, width : int
    classes : Classes
    """
    yield _SIGNATURE
    yield _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, _INDEXED, 0, 0, 0))
    yield _chunk(b"PLTE", colour_table(classes).tobytes())
    packer = zlib.compressobj(_LEVEL)
    for band in bands:
        rows = np.zeros((len(band), width + 1), np.uint8)  # each row begins with its filter: none
        rows[:, 1:] = band
        if packed := packer.compress(rows.tobytes()):
            yield _chunk(b"IDAT", packed)
    yield _chunk(b"IDAT", packer.flush())
    yield _chunk(b"IEND", b"")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(data, zlib.crc32(kind)))
