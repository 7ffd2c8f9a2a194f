"""
Decoding of JPEG, PNG and WebP files, and of GeoTIFFs, to pixels: red, green and blue, or the bands that a bundle names.

Colour profile and gamma are ignored, and so is the EXIF orientation unless the bundle says that it counts: all as when accuracy
was measured. Before any pixel is decoded, the header is read, the number of pixels is checked, and everything but the image
itself is removed from the file.
"""

import io
import struct
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import simplejpeg  # type: ignore[import-untyped]
from PIL import Image, UnidentifiedImageError

from ddcat.band_files import decode_bands
from ddcat.error_text import first_line
from ddcat.geotiff import is_tiff
from ddcat.image_files import (
    AnimationError,
    ImageFileError,
    is_jpeg,
    is_png,
    is_webp,
    jpeg_frame,
    orientation_of,
    palette_size,
    strip_metadata,
)
from ddcat.image_pixels import check_depth, decode_16_bits
from ddcat.preprocess import AS_STORED, FileRule, turned
from ddcat_serve.errors import RequestError
from ddcat_serve.http.tiffs import decode_tiff, tiff_size

__all__ = ["TIFF_AND_RESIZE", "decode", "size_of"]

TIFF_AND_RESIZE = "the image is a TIFF, which is taken at its own size, and the bundle resizes: send JPEG or PNG"

_SURPLUS = "extraneous bytes before marker"  # libjpeg's warning of bytes after the pixels of a scan: other decoders ignore them

Size = tuple[int, int]
U8 = npt.NDArray[np.uint8]


class _Format(NamedTuple):
    name: str
    begins: Callable[[bytes], bool]
    size: Callable[[bytes], Size]  # (height, width), from the header alone
    decode: Callable[[bytes, Size], U8]  # takes a stripped file and its header's size: an image of another size is refused


def size_of(content: bytes, rule: FileRule = AS_STORED, *, max_pixels: int) -> Size:
    """Read (height, width) from an image's header, as it is once turned by a rule; errors as `decode`, but for the pixels'."""
    form = _format_of(content, rule)
    height, width = form.size(content)
    if form.name == "TIFF" and rule.resize is not None:
        raise RequestError(415, TIFF_AND_RESIZE)
    try:
        if form.name != "TIFF":  # which is opened by its values
            check_depth(content, rule.values)
    except ImageFileError as cause:
        raise RequestError(415, str(cause)) from cause
    _check_pixels(width, height, max_pixels)
    return (width, height) if _orientation(content, rule) >= 5 else (height, width)


def decode(content: bytes, rule: FileRule = AS_STORED, *, max_pixels: int) -> U8:
    """
    Decode a JPEG, PNG, WebP or TIFF file, recognised by its first bytes, and turn it as a rule says; it keeps its size.

    Grey images and palettes are converted to RGB, and an opaque alpha channel is dropped. Other images would need a guess and
    are refused: transparent pixels, indices beyond a palette, 16 bits per channel, CMYK, animations. `max_pixels` is at most 89
    million: from there on Pillow warns. Resizing is `ddcat.preprocess.preprocess`.

    Returns
    -------
    (H, W, C) uint8
        RGB, or the bands of the rule.

    Raises
    ------
    RequestError
        400 for a damaged image or one that is ambiguous, 413 for too many pixels, 415 for another format.
    """
    form = _format_of(content, rule)
    size = size_of(content, rule.model_copy(update={"orientation": "stored", "resize": None}), max_pixels=max_pixels)
    try:
        return turned(_pixels(content, form, size, rule), _orientation(content, rule))
    except (RequestError, MemoryError):
        raise
    except AnimationError as cause:
        raise RequestError(415, f"{cause}: send one of its pictures") from cause
    except ImageFileError as cause:
        raise RequestError(400, str(cause)) from cause
    except Exception as cause:  # decoders raise a dozen types for damaged files
        # Pillow's own message names an address in memory
        reason = "its header cannot be read" if isinstance(cause, UnidentifiedImageError) else first_line(cause)
        raise RequestError(400, f"the {form.name} is damaged: {reason}") from cause


def _pixels(content: bytes, form: "_Format", size: Size, rule: FileRule) -> U8:
    """Decode a file whose header has some size: neither turned nor resized."""
    if form.name == "TIFF":
        return form.decode(content, size)
    if rule.bands is not None:
        pixels = decode_bands(content, rule.bands, rule.values)
        _check_same((pixels.shape[0], pixels.shape[1]), size)
        return pixels
    stripped = strip_metadata(content)
    return form.decode(stripped, size) if rule.values is None else decode_16_bits(stripped, rule.values)


def _orientation(content: bytes, rule: FileRule) -> int:
    return orientation_of(content) if rule.orientation == "exif" else 1


def _format_of(content: bytes, rule: FileRule) -> _Format:
    if is_tiff(content):
        return _Format("TIFF", is_tiff, partial(tiff_size, rule=rule), partial(decode_tiff, rule=rule))
    for known in _FORMATS:
        if known.begins(content):
            return known
    raise RequestError(
        415, "the image is neither JPEG, PNG nor WebP" if content else "the request holds no image: send a JPEG, PNG or WebP"
    )


def _jpeg_size(content: bytes) -> Size:
    try:
        height, width, channels = jpeg_frame(content)
    except ImageFileError as cause:
        raise RequestError(400, str(cause)) from cause
    if channels not in (1, 3):
        raise RequestError(415, f"the JPEG is {'CMYK' if channels == 4 else f'of {channels} channels'}: convert it to RGB")
    return height, width


def _decode_jpeg(content: bytes, size: Size) -> U8:
    _check_same(simplejpeg.decode_jpeg_header(content)[:2], size)
    try:
        pixels: U8 = simplejpeg.decode_jpeg(content, "RGB")
    except ValueError as cause:
        if _SURPLUS not in str(cause):
            raise
        pixels = simplejpeg.decode_jpeg(content, "RGB", strict=False)
    return pixels


def _png_size(content: bytes) -> Size:
    if len(content) < 33 or content[12:16] != b"IHDR":
        raise RequestError(400, "the PNG has no readable header")
    width, height = struct.unpack(">II", content[16:24])
    return height, width


def _webp_size(content: bytes) -> Size:
    """Read the size from the first chunk; of an extended file the canvas, which Pillow allocates before it decodes anything."""
    kind, data = content[12:16], content[20:30]
    if len(data) == 10 and kind == b"VP8X":
        if data[0] & 2:
            raise RequestError(415, "the WebP is an animation: send one of its pictures")
        return 1 + int.from_bytes(data[7:10], "little"), 1 + int.from_bytes(data[4:7], "little")
    if len(data) == 10 and kind == b"VP8 " and data[3:6] == b"\x9d\x01\x2a":
        width, height = struct.unpack("<HH", data[6:10])
        return height & 0x3FFF, width & 0x3FFF
    if len(data) >= 5 and kind == b"VP8L" and data[0] == 0x2F:
        bits = int.from_bytes(data[1:5], "little")
        return 1 + (bits >> 14 & 0x3FFF), 1 + (bits & 0x3FFF)
    raise RequestError(400, "the WebP has no readable header")


def _by_pillow(name: str) -> Callable[[bytes, Size], U8]:
    def decoded(content: bytes, size: Size) -> U8:
        with Image.open(io.BytesIO(content), formats=[name.upper()]) as image:
            _check_same((image.height, image.width), size)  # no pixel is decoded yet
            if image.mode == "P" and np.asarray(image).max() >= palette_size(content):
                raise RequestError(400, f"the {name} has indices beyond its palette, whose colour is undefined")
            if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
                return _without_alpha(np.asarray(image.convert("RGBA")), name)
            return np.asarray(image.convert("RGB"))

    return decoded


_FORMATS = (
    _Format("JPEG", is_jpeg, _jpeg_size, _decode_jpeg),
    _Format("PNG", is_png, _png_size, _by_pillow("PNG")),
    _Format("WebP", is_webp, _webp_size, _by_pillow("WebP")),
)


def _without_alpha(pixels: npt.NDArray[Any], name: str) -> U8:
    if pixels[..., 3].min() < 255:
        raise RequestError(400, f"the {name} has transparent pixels, whose colour is undefined: flatten it")
    return np.ascontiguousarray(pixels[..., :3])


def _check_same(actual: Size, size: Size) -> None:
    if actual != size:
        raise RequestError(400, "the image is damaged: it has a second header, of another size")


def _check_pixels(width: int, height: int, max_pixels: int) -> None:
    if width == 0 or height == 0:
        raise RequestError(400, f"the image is {width} x {height} pixels")
    if width * height > max_pixels:
        raise RequestError(413, f"the image is {width} x {height} pixels; expected at most {max_pixels} pixels")
