"""The pixels of an image file: JPEG, PNG and WebP, whatever its name says."""

import io

import numpy as np
import numpy.typing as npt

from ddcat.error_text import first_line
from ddcat.image_files import ImageFileError, is_png, palette_size, strip_metadata

__all__ = ["decode_image"]

_FORMATS = ("JPEG", "PNG", "WEBP")
_MODES = {"RGB", "RGBA", "L", "LA", "P", "PA", "1"}
_DEPTH = 24  # byte of a PNG that says how many bits a value has


def decode_image(content: bytes) -> npt.NDArray[np.uint8]:
    """
    Decode an image file to RGB as it is stored: neither turned nor resized.

    Grey and palettes become RGB; transparency is dropped.

    Parameters
    ----------
    content : bytes
        A whole file.

    Returns
    -------
    (H, W, 3) uint8

    Raises
    ------
    ImageFileError
        For another format, a damaged file, CMYK, 16 bits a channel, several pictures, or indices beyond a palette.
    """
    from PIL import Image, UnidentifiedImageError  # noqa: PLC0415 -- arrays need no library of images

    stripped = strip_metadata(content)
    if is_png(stripped) and stripped[_DEPTH] == 16:  # Pillow takes the upper 8 of colours, though not of grey values
        raise ImageFileError("it is a PNG of 16 bits a channel: expected 8")
    try:
        with Image.open(io.BytesIO(stripped), formats=_FORMATS) as opened:
            if opened.mode not in _MODES:
                raise ImageFileError(f"it is an image of mode {opened.mode}: expected RGB or grey of 8 bits")
            if opened.mode == "P" and np.asarray(opened).max() >= palette_size(stripped):
                raise ImageFileError("it has indices beyond its palette, whose colour is undefined")
            opened.info.pop("transparency", None)  # of which Pillow would warn
            # by way of RGBA, since grey and alpha of a palette are not converted directly
            return np.array((opened.convert("RGBA") if opened.mode == "PA" else opened).convert("RGB"), dtype=np.uint8)
    except UnidentifiedImageError as cause:
        raise ImageFileError("it is no image: use JPEG, PNG or WebP") from cause
    except ImageFileError:
        raise
    except Exception as cause:  # Pillow raises a dozen types for damaged files
        raise ImageFileError(f"it cannot be decoded: {first_line(cause)}") from cause
