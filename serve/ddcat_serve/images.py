"""
Images of a request: JPEG and PNG to pixels, labels to a palette PNG.

Pixels are taken as they are stored: no orientation of EXIF, no colour profile and no gamma is applied, since accuracy was
measured without them. The header is read, and the number of pixels capped, before any pixel is decoded.
"""

import io
import struct
from typing import Any

import numpy as np
import numpy.typing as npt
import simplejpeg  # type: ignore[import-untyped]
from PIL import Image

from ddcat.classes import Classes
from ddcat_serve.errors import RequestError

__all__ = ["decode", "encode_mask"]

_JPEG = b"\xff\xd8\xff"
_PNG = b"\x89PNG\r\n\x1a\n"
_SCANS = 100  # a progressive photograph has about ten; thousands of tiny ones keep a decoder busy for minutes


def decode(content: bytes, *, max_pixels: int) -> npt.NDArray[np.uint8]:
    """
    Decode a JPEG or PNG file, recognised by its first bytes.

    Grey images and palettes become RGB. An opaque alpha channel is dropped. Refused, since any conversion would be a guess:
    transparent pixels, 16 bits a channel, CMYK.

    Parameters
    ----------
    content : bytes
    max_pixels : int
        At most 89 million, which is where Pillow itself warns.

    Returns
    -------
    (H, W, 3) uint8
        RGB.

    Raises
    ------
    RequestError
        400 for a damaged image or one that would have to be guessed, 413 for too many pixels, 415 for another format.
    """
    if content.startswith(_JPEG):
        return _decode_jpeg(content, max_pixels)
    if content.startswith(_PNG):
        return _decode_png(content, max_pixels)
    raise RequestError(
        415, "the image is neither JPEG nor PNG" if content else "the request holds no image: send a JPEG or PNG"
    )


def encode_mask(labels: npt.NDArray[np.uint8], classes: Classes) -> bytes:
    """
    Encode labels as a palette PNG of 8 bits a pixel, whose indices are the labels.

    Parameters
    ----------
    labels : (H, W) uint8
        In 0..K-1.
    classes : Classes
        Their colours become the palette.
    """
    height, width = labels.shape
    mask = Image.frombytes("P", (width, height), labels.tobytes())
    colours = bytes(channel for colour in classes.palette for channel in colour)
    mask.putpalette(colours.ljust(3 * 256, b"\0"))  # Pillow packs several pixels into a byte where there are few colours
    file = io.BytesIO()
    mask.save(file, "PNG", compress_level=1)  # level 6 takes five times as long
    return file.getvalue()


def _decode_jpeg(content: bytes, max_pixels: int) -> npt.NDArray[np.uint8]:
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(content)
    except ValueError as cause:
        raise RequestError(400, f"the JPEG has no readable header: {cause}") from cause
    _check_pixels(width, height, max_pixels)
    if colours not in ("YCbCr", "Gray", "RGB"):
        raise RequestError(415, f"the JPEG is {colours}: convert it to RGB")
    if content.count(b"\xff\xda") > _SCANS:
        raise RequestError(400, f"the JPEG has more than {_SCANS} scans")
    try:
        pixels: npt.NDArray[np.uint8] = simplejpeg.decode_jpeg(content, "RGB")
    except ValueError as cause:
        raise RequestError(400, f"the JPEG is damaged: {cause}") from cause
    return pixels


def _decode_png(content: bytes, max_pixels: int) -> npt.NDArray[np.uint8]:
    if len(content) < 33 or content[12:16] != b"IHDR":
        raise RequestError(400, "the PNG has no readable header")
    width, height, bits = struct.unpack(">IIB", content[16:25])
    _check_pixels(width, height, max_pixels)
    if bits == 16:
        raise RequestError(415, "the PNG has 16 bits a channel: convert it to 8")
    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
                pixels = _without_alpha(np.asarray(image.convert("RGBA")))
            else:
                pixels = np.asarray(image.convert("RGB"))
    except RequestError:
        raise
    except Exception as cause:  # damaged files raise a dozen kinds
        raise RequestError(400, f"the PNG is damaged: {cause}") from cause
    return pixels


def _without_alpha(pixels: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    if pixels[..., 3].min() < 255:
        raise RequestError(400, "the PNG has transparent pixels, whose colour is undefined: flatten it")
    return np.ascontiguousarray(pixels[..., :3])


def _check_pixels(width: int, height: int, max_pixels: int) -> None:
    if width == 0 or height == 0:
        raise RequestError(400, f"the image is {width} x {height} pixels")
    if width * height > max_pixels:
        raise RequestError(413, f"the image is {width} x {height} pixels; at most {max_pixels} in all are taken")
