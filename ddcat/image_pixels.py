"""The pixels of an image file: JPEG, PNG and WebP, whatever its name says."""

import functools
import io

import numpy as np
import numpy.typing as npt

from ddcat.error_text import first_line
from ddcat.image_files import ImageFileError, is_png, palette_size, strip_metadata

__all__ = ["check_depth", "decode_16_bits", "decode_image", "has_16_bits", "table_of_16_bits"]

_FORMATS = ("JPEG", "PNG", "WEBP")
_MODES = {"RGB", "RGBA", "L", "LA", "P", "PA", "1"}
_DEPTH = 24  # byte of a PNG that says how many bits a value has


def has_16_bits(content: bytes) -> bool:
    """Return whether a file is a PNG of 16 bits a channel; no other format that is read has them."""
    return is_png(content) and content[_DEPTH : _DEPTH + 1] == b"\x10"


def check_depth(content: bytes, values: tuple[int, int] | None) -> None:
    """
    Refuse a file of 16 bits a channel where no values are given, and one of 8 bits where they are.

    Raises
    ------
    ImageFileError
    """
    deep = has_16_bits(content)
    if deep and values is None:
        raise ImageFileError("the PNG has 16 bits a channel: convert it to 8")
    if not deep and values is not None:
        raise ImageFileError("the image has 8 bits a channel: expected 16 bits, for data.values is set")


def decode_16_bits(content: bytes, values: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """
    Decode a PNG of 16 bits a channel, in colour or grey, without transparency, and bring it to 8.

    Parameters
    ----------
    content : bytes
        From `strip_metadata`.
    values : (int, int)
        They become 0 and 255, what is beyond them too; between them, the nearest of 8 bits.

    Returns
    -------
    (H, W, 3) uint8
        RGB.

    Raises
    ------
    ImageFileError
    """
    import cv2  # noqa: PLC0415 -- Pillow reads but 8 bits of colours

    found = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    if found is None or found.dtype != np.uint16:
        raise ImageFileError("the PNG of 16 bits a channel is damaged")
    if found.ndim == 3 and found.shape[2] != 3:
        raise ImageFileError("the PNG of 16 bits a channel has transparency: flatten it")
    pixels = table_of_16_bits(values)[found]
    return np.ascontiguousarray(pixels[..., ::-1] if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, 2))


@functools.cache
def table_of_16_bits(values: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """Return what each value of 16 bits becomes, (65536,): see `decode_16_bits`."""
    low, high = values
    every = np.arange(2**16)
    return np.clip((2 * 255 * (every - low) + high - low) // (2 * (high - low)), 0, 255).astype(np.uint8)  # rounded, exactly


def decode_image(content: bytes, values: tuple[int, int] | None = None) -> npt.NDArray[np.uint8]:
    """
    Decode an image file to RGB as it is stored: neither turned nor resized.

    Grey and palettes become RGB; transparency is dropped.

    Parameters
    ----------
    content : bytes
        A whole file.
    values : (int, int), optional
        Of files of 16 bits a channel: see `decode_16_bits`. By default they are refused, with it those of 8 bits.

    Returns
    -------
    (H, W, 3) uint8

    Raises
    ------
    ImageFileError
        For another format, a damaged file, CMYK, another depth, several pictures, or indices beyond a palette.
    """
    from PIL import Image, UnidentifiedImageError  # noqa: PLC0415 -- arrays need no library of images

    stripped = strip_metadata(content)
    check_depth(stripped, values)
    if values is not None:
        return decode_16_bits(stripped, values)
    try:
        with Image.open(io.BytesIO(stripped), formats=_FORMATS) as opened:
            if opened.mode not in _MODES:
                raise ImageFileError(f"it is an image of mode {opened.mode}: expected RGB or grey of 8 bits")
            if opened.mode == "P" and np.asarray(opened).max() >= palette_size(stripped):
                raise ImageFileError("it has indices beyond its palette, whose colour is undefined")
            opened.info.pop("transparency", None)  # of which Pillow would warn
            if opened.mode == "RGB":
                return np.array(opened)  # a conversion would copy it
            # by way of RGBA, since grey and alpha of a palette are not converted directly
            return np.array((opened.convert("RGBA") if opened.mode == "PA" else opened).convert("RGB"), dtype=np.uint8)
    except UnidentifiedImageError as cause:
        raise ImageFileError("it is not an image: use JPEG, PNG or WebP") from cause
    except ImageFileError:
        raise
    except Exception as cause:  # Pillow raises a dozen types for damaged files
        raise ImageFileError(f"it cannot be decoded: {first_line(cause)}") from cause
