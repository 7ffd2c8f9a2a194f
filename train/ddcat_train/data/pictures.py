"""
Images and masks of a data set to pixels. No other module opens an image of a data set.

Only JPEG and PNG are decoded, whatever the name says: some of the formats that Pillow knows start another program.
"""

import io
import re
import struct
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from ddcat.error_text import first_line
from ddcat.geotiff import SceneError, is_tiff, opened_scene
from ddcat.image_files import ImageFileError, is_png, orientation_of, palette_size, strip_metadata
from ddcat.image_pixels import check_depth, decode_16_bits
from ddcat.preprocess import AS_STORED, FileRule, decoded, turned
from ddcat_train.data.files import read_bytes
from ddcat_train.errors import DataError

__all__ = ["U8", "Head", "Mask", "read_head", "read_image", "read_mask", "read_size"]

U8 = npt.NDArray[np.uint8]

_FORMATS = ("JPEG", "PNG")
_PNG_HEADER, _HEADER_END = b"\0\0\0\x0dIHDR", 33
_OTHERS = {  # by their first bytes, for an error that says what a file is
    b"GIF8": "GIF", b"BM": "BMP", b"II*\0": "TIFF", b"MM\0*": "TIFF", b"RIFF": "WebP", b"%!PS": "PostScript", b"%PDF": "PDF",
    b"\xc5\xd0\xd3\xc6": "PostScript", b"\0\0\0\x0cjP": "JPEG 2000", b"DDS ": "DDS", b"8BPS": "Photoshop", b"<svg": "SVG",
}  # fmt: skip
_COLOUR_MODES = {"RGB", "RGBA", "L", "LA", "P", "PA", "1"}
_MODES = {"I": "a PNG of 16 bits (mode I)", "I;16": "a PNG of 16 bits (mode I;16)", "LA": "a PNG in grey and alpha (mode LA)"}
_HEAD = 1 << 17  # bytes, in which nearly all files say what they are
_MOST_CHUNKS = 100_000  # of a PNG, in which EXIF is looked for
_DEPTH = 24  # byte of a PNG that says how many bits a value has
_DAMAGED = (OSError, SyntaxError, ValueError, IndexError, TypeError, KeyError, struct.error, EOFError)  # what Pillow raises

# Pillow warns of damaged EXIF, on which no pixel depends, and from 89 Mpx on; it refuses twice as many, which is the limit
warnings.filterwarnings("ignore", module=r"PIL\.")


class Head(NamedTuple):
    """Head of an image file: its size as stored, and its EXIF orientation (1..8)."""

    height: int
    width: int
    orientation: int


class Mask(NamedTuple):
    """
    A label file.

    Attributes
    ----------
    pixels : (H, W) or (H, W, 3) uint8
        Indices, or colours (RGB).
    palette : (N, 3) uint8 or None
        RGB of the indices, where the file has a palette.
    """

    pixels: U8
    palette: U8 | None


def read_image(path: Path, rule: FileRule = AS_STORED) -> U8:
    """
    Read an image as (H, W, C) uint8, RGB or the bands of the rule, turned where the rule says so, and at its own size.

    Without bands, grey becomes RGB and transparency is dropped. (Pillow decodes to the same values as OpenCV, but refuses a
    truncated file in every version.) Raises `DataError`.
    """
    whole = read_bytes(path)
    if rule.bands is not None:
        try:
            return decoded(whole, rule)
        except ImageFileError as cause:  # a missing library is no fault of the file
            raise DataError(f"{path}: {cause}") from cause
    content = _stripped(path, whole, "image")
    if rule.values is not None:
        try:
            check_depth(content, rule.values)
            pixels = decode_16_bits(content, rule.values)
        except ImageFileError as cause:
            raise DataError(f"{path}: {cause}") from cause
        return _turned(pixels, whole, rule)
    with _Opened(path, content, "image") as opened:
        if opened.mode not in _COLOUR_MODES:
            raise DataError(f"{path} is an image of mode {opened.mode}, expected RGB or grey of 8 bits")
        if is_png(content) and content[_DEPTH] == 16:  # Pillow takes the upper 8 of colours, though not of grey values
            raise DataError(f"{path} is a PNG of 16 bits a channel, expected 8: data.values reads it")
        if opened.mode == "P" and np.asarray(opened).max() >= palette_size(content):
            raise DataError(f"{path} has indices beyond its palette, whose colour is undefined: replace it")
        opened.info.pop("transparency", None)  # of which Pillow would warn
        # by way of RGBA, since grey and alpha of a palette are not converted directly
        pixels = np.array((opened.convert("RGBA") if opened.mode == "PA" else opened).convert("RGB"), dtype=np.uint8)
    return _turned(pixels, whole, rule)  # (H, W, 3)


def read_mask(path: Path) -> Mask:
    """
    Read a label PNG: indices where it has a palette or is grey, else its colours.

    Raises
    ------
    DataError
        Also where it is no PNG, of 16 bits, of fewer than 8 bits in grey, or transparent.
    """
    content = _stripped(path, read_bytes(path), "label file")
    name = path
    if content.startswith(b"\xff\xd8\xff"):
        raise DataError(f"{name} is a JPEG file: labels must be PNG, which keeps every value as it is")
    with _Opened(path, content, "label file") as opened:
        if opened.mode in {"L", "1"} and (bits := content[_DEPTH]) < 8:
            # Pillow stretches grey values, and not indices, to 0..255: labels 0, 1, 2 of 4 bits would be 0, 17, 34
            raise DataError(f"{name} is a grey PNG of {bits} bit{'s' * (bits > 1)}, expected 8 bits or a palette")
        if content[_DEPTH] == 16 and opened.mode != "I;16":
            raise DataError(f"{name} is a PNG of 16 bits a channel, expected 8")
        if opened.mode == "RGBA":
            pixels = np.array(opened, dtype=np.uint8)
            if (pixels[..., 3] < 255).any():
                raise DataError(f"{name} has transparent pixels (mode RGBA), expected a mask without transparency")
            return Mask(np.ascontiguousarray(pixels[..., :3]), None)
        if opened.mode not in {"P", "L", "RGB"}:
            form = _MODES.get(opened.mode, f"a PNG of mode {opened.mode}")
            raise DataError(
                f"{name} is {form}: labels must be indices of 8 bits, with a palette (mode P) or in grey (mode L), one value "
                "for each class"
            )
        palette = np.array(opened.getpalette() or [], np.uint8).reshape(-1, 3) if opened.mode == "P" else None
        return Mask(np.array(opened, dtype=np.uint8), palette)


def read_size(path: Path, rule: FileRule) -> tuple[int, int]:
    """
    Read the height and width of `read_image`; no pixel is decoded.

    Raises
    ------
    DataError
        Where the file is missing or no image.
    """
    if rule.bands is not None and is_tiff(read_bytes(path, first=4)):
        try:
            with opened_scene(str(path), rule.values, rule.bands) as scene:
                return scene.height, scene.width
        except SceneError as cause:
            raise DataError(f"{path}: {cause}") from cause
    height, width, orientation = read_head(path)
    if rule.orientation == "exif" and orientation == 1:
        orientation = orientation_of(read_bytes(path))  # it may stand behind the pixels
    return (width, height) if rule.orientation == "exif" and orientation >= 5 else (height, width)


def read_head(path: Path) -> Head:
    """
    Read the size of an image, and the orientation it is to be shown in; no pixel is decoded.

    Raises
    ------
    DataError
        Where the file is missing or no image.
    """
    content = read_bytes(path, first=_HEAD)
    try:
        head = _head(path, content)
    except DataError:
        if len(content) < _HEAD:
            raise
        return _head(path, read_bytes(path))  # something large stands before the pixels
    if head.orientation == 1 and is_png(content) and len(content) == _HEAD:
        return head._replace(orientation=_orientation_behind_pixels(path, content[:_HEADER_END]))
    return head


def _orientation_behind_pixels(path: Path, header: bytes) -> int:
    """Read the orientation of a PNG wherever it stands, without the pixels; `header`: signature and IHDR."""
    with path.open("rb", buffering=0) as file:
        at = len(header)
        for _ in range(_MOST_CHUNKS):
            file.seek(at)
            length, kind = int.from_bytes(file.read(4), "big"), file.read(4)
            if kind == b"eXIf":
                file.seek(at)
                return orientation_of(header + file.read(min(12 + length, _HEAD)))
            if kind in (b"IEND", b""):
                break
            at += 12 + length
    return 1


def _head(path: Path, content: bytes) -> Head:
    if is_png(content) and content[8:16] == _PNG_HEADER and len(content) >= _HEADER_END:
        # Pillow would decode the pixels to look for EXIF behind them
        width, height = struct.unpack(">II", content[16:24])
        return Head(height, width, orientation_of(content))
    with _Opened(path, content, "image") as opened:
        return Head(opened.height, opened.width, orientation_of(content))


def _turned(pixels: U8, content: bytes, rule: FileRule) -> U8:
    return turned(pixels, orientation_of(content)) if rule.orientation == "exif" else pixels


def _stripped(path: Path, content: bytes, what: str) -> bytes:
    """Return a file without its metadata, which changes no pixel and can be too much for Pillow."""
    try:
        return strip_metadata(content)
    except ImageFileError as cause:
        raise DataError(f"{path} is not a readable {what} ({cause}): replace it") from cause


class _Opened:
    """An image of a file, opened by Pillow; what is wrong with it is a DataError that names the file."""

    def __init__(self, path: Path, content: bytes, what: str) -> None:
        self._path, self._content, self._what = path, content, what

    def __enter__(self) -> Image.Image:
        try:
            self._image = Image.open(io.BytesIO(self._content), formats=_FORMATS)
        except (*_DAMAGED, Image.DecompressionBombError) as cause:
            raise self._fault(cause) from cause
        return self._image

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._image.close()
        if isinstance(error, _DAMAGED):
            raise self._fault(error) from error

    def _fault(self, cause: BaseException) -> DataError:
        name, text = self._path, first_line(cause)
        if isinstance(cause, Image.DecompressionBombError) and (found := re.search(r"\((\d+) pixels\)", text)):
            most = 2 * (Image.MAX_IMAGE_PIXELS or 0) / 1e6
            return DataError(f"{name} is too large ({int(found[1]) / 1e6:.0f} Mpx, at most {most:.0f}): cut it into tiles")
        if "cannot identify" in text:  # Pillow speaks of the buffer that it was given, at an address that says nothing
            for begin, form in _OTHERS.items():
                if self._content.startswith(begin):
                    return DataError(f"{name} is a {form} file: convert it to {'JPEG or ' * (self._what == 'image')}PNG")
            text = "its format is unknown" if self._content else "it is empty"
        return DataError(f"{name} is not a readable {self._what} ({text}): replace it")
