"""
The picture of an image file, without everything else in it: JPEG, PNG and WebP.

Profiles, texts, previews, orientations and whatever follows the end never change what we read of a file; left in, they make
decoders refuse it, or keep them busy for minutes. So they are taken out before a decoder sees the file. The parts of a file are
walked by their lengths, as decoders walk them, and never more than some thousands of them: a file of millions of empty parts is
refused in milliseconds.
"""

import re
import zlib
from collections.abc import Iterator
from typing import Literal, NamedTuple

from ddcat.errors import DdcatError

__all__ = [
    "AnimationError",
    "ImageFileError",
    "is_jpeg",
    "is_png",
    "is_webp",
    "jpeg_frame",
    "orientation_of",
    "palette_size",
    "strip_metadata",
]

_MOST_PARTS = 10_000  # chunks of 8 KiB, which is libpng's own size, hold 80 MB so
_MOST_SCANS = 100  # a progressive photograph has about ten; thousands of tiny ones keep a decoder busy for minutes

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_BITS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}  # by colour type
_PNG_INDEXED = 3
_PNG_PICTURE = (b"IHDR", b"PLTE", b"tRNS", b"IDAT")
_PNG_HEADER = 25  # bytes of a whole IHDR chunk
_PNG_END = b"\0\0\0\0IEND\xae\x42\x60\x82"

_JPEG_MARKER = re.compile(rb"\xff[\x01-\xfe]")
_JPEG_MARKER_IN_SCAN = re.compile(rb"\xff[\xc0-\xcf\xd8-\xfe]")  # a stuffed byte and a restart are part of a scan
_JPEG_ALONE = {0x01, *range(0xD0, 0xD9)}  # markers without a length
_JPEG_END, _JPEG_SCAN = 0xD9, 0xDA
_JPEG_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_JPEG_SLACK = 65536  # bytes that may lie between all segments together: they are searched for the next one
_JPEG_STRIDE = 1 << 18  # bytes of a scan that are searched at once: other threads of Python wait meanwhile
_JPEG_METADATA = {*range(0xE1, 0xEE), 0xEF, 0xFE}  # APP0 and APP14 say which colours the numbers are

_EXIF = b"Exif\0\0"  # before the directories, in a JPEG
_ORIENTATION = 0x0112
_MOST_TAGS = 1000  # of a directory: cameras write some dozens

_WEBP_ALPHA = 0x10  # the one flag of VP8X that is of the picture
_WEBP_ANIMATED = 0x02


class ImageFileError(DdcatError):
    """A file that is damaged, or whose picture would have to be guessed; the message does not name the file."""


class AnimationError(ImageFileError):
    """A file that holds several pictures."""


def is_jpeg(content: bytes) -> bool:
    """Return whether a file begins as a JPEG."""
    return content.startswith(b"\xff\xd8\xff")


def is_png(content: bytes) -> bool:
    """Return whether a file begins as a PNG."""
    return content.startswith(_PNG)


def is_webp(content: bytes) -> bool:
    """Return whether a file begins as a WebP."""
    return content.startswith(b"RIFF") and content[8:12] == b"WEBP"


def strip_metadata(content: bytes) -> bytes:
    """
    Return a file with the same picture and nothing else.

    The pixels are not decoded, so a decoder may still find them damaged. Files of other formats are returned unchanged.

    Parameters
    ----------
    content : bytes
        A whole file.

    Raises
    ------
    ImageFileError
        For a file that is cut off, has a wrong checksum, breaks its format, or has more than 10,000 parts or 100 scans.
    AnimationError
        For an animated PNG or WebP.
    """
    if is_jpeg(content):
        return _strip_jpeg(content)
    if is_png(content):
        return _strip_png(content)
    return _strip_webp(content) if is_webp(content) else content


class _Segment(NamedTuple):
    marker: int
    start: int
    end: int  # with the scan's data, where it is one


def _jpeg_segments(content: bytes) -> Iterator[_Segment]:
    """Walk to the end of the image as libjpeg does, which passes over whatever lies between two segments."""
    at, slack = 2, _JPEG_SLACK
    for _ in range(_MOST_PARTS):
        found = _JPEG_MARKER.search(content, at, at + slack + 2)
        if found is None:
            whole = at + slack + 2 < len(content)
            raise ImageFileError(
                f"the JPEG has more than {_JPEG_SLACK} bytes between its segments" if whole else "the JPEG is cut off"
            )
        slack -= found.start() - at
        start, marker, at = found.start(), content[found.start() + 1], found.end()
        if marker not in _JPEG_ALONE and marker != _JPEG_END:
            if marker < 0xC0:
                raise ImageFileError(f"the JPEG has an unknown segment, {marker:#04x}")
            at += max(2, int.from_bytes(content[at : at + 2], "big"))  # libjpeg takes 0 and 1 for 2
            if at > len(content):
                raise ImageFileError("the JPEG is cut off")
            if marker == _JPEG_SCAN:
                at = _end_of_scan(content, at)
        yield _Segment(marker, start, at)
        if marker == _JPEG_END:
            return
    raise ImageFileError(f"the JPEG has more than {_MOST_PARTS} segments")


def _end_of_scan(content: bytes, at: int) -> int:
    while at < len(content):
        found = _JPEG_MARKER_IN_SCAN.search(content, at, at + _JPEG_STRIDE)
        if found is not None:
            return found.start()
        at += _JPEG_STRIDE - 1  # a marker has two bytes
    return len(content)


def _strip_jpeg(content: bytes) -> bytes:
    parts, scans = [content[:2]], 0
    for segment in _jpeg_segments(content):
        scans += segment.marker == _JPEG_SCAN
        if scans > _MOST_SCANS:
            raise ImageFileError(f"the JPEG has more than {_MOST_SCANS} scans")
        if segment.marker not in _JPEG_METADATA:
            parts.append(content[segment.start : segment.end])
    return b"".join(parts)


def jpeg_frame(content: bytes) -> tuple[int, int, int]:
    """
    Return the height, the width and the number of channels of a JPEG, from its header; the file need not be whole.

    Raises
    ------
    ImageFileError
    """
    for segment in _jpeg_segments(content):
        if segment.marker in _JPEG_FRAMES and segment.end - segment.start >= 10:
            frame = content[segment.start + 5 : segment.start + 10]
            return int.from_bytes(frame[:2], "big"), int.from_bytes(frame[2:4], "big"), frame[4]
        if segment.marker in (_JPEG_SCAN, _JPEG_END):
            break
    raise ImageFileError("the JPEG has no readable header")


class _Chunk(NamedTuple):
    kind: bytes
    data: memoryview
    whole: memoryview  # with its length, kind and checksum


def _png_chunks(content: bytes) -> Iterator[_Chunk]:
    view, at = memoryview(content), len(_PNG)
    for _ in range(_MOST_PARTS):
        data, kind = at + 8, content[at + 4 : at + 8]
        end = data + int.from_bytes(content[at : at + 4], "big")
        if end + 4 > len(content):
            raise ImageFileError("the PNG is cut off")
        yield _Chunk(kind, view[data:end], view[at : end + 4])
        if kind == b"IEND":
            return
        at = end + 4
    raise ImageFileError(f"the PNG has more than {_MOST_PARTS} chunks")


def _strip_png(content: bytes) -> bytes:
    """By the rules of libpng: what it refuses is refused, what it leaves out is left out."""
    colour = _png_colour(content)
    indexed = colour == _PNG_INDEXED
    palette = transparency = memoryview(b"")
    pixels: list[memoryview] = []
    before = b""
    for kind, data, whole in _png_chunks(content):
        _check_kind(kind, before, bool(pixels))
        if kind in _PNG_PICTURE:
            _check_crc(whole)
        if kind == b"IDAT":
            pixels.append(data)
        elif kind == b"PLTE":
            if palette or pixels or not data or len(data) % 3 or len(data) > 768:
                raise ImageFileError("the PNG has an invalid palette")
            palette = whole
        elif kind == b"tRNS" and not (pixels or transparency) and (palette if indexed else colour in (0, 2)):
            transparency = whole
        before = kind
    if not pixels:
        raise ImageFileError("the PNG has no pixels")
    if indexed and not palette:
        raise ImageFileError("the PNG has colour type 3, but no palette")
    start = content[: len(_PNG) + _PNG_HEADER]
    data = pixels[0] if len(pixels) == 1 else memoryview(b"".join(pixels))
    checksum = zlib.crc32(data, zlib.crc32(b"IDAT")).to_bytes(4, "big")
    needed = palette if indexed else b""  # of colours it is a mere proposal
    return b"".join((start, needed, transparency, len(data).to_bytes(4, "big"), b"IDAT", data, checksum, _PNG_END))


def _png_colour(content: bytes) -> int:
    """Check the header, and return its colour type."""
    whole = content[len(_PNG) : len(_PNG) + _PNG_HEADER]
    if len(whole) < _PNG_HEADER or not whole.startswith(b"\0\0\0\x0dIHDR"):
        raise ImageFileError("the PNG has no readable header")
    bits, colour, *methods = whole[16:21]
    if bits not in _PNG_BITS.get(colour, ()) or methods[:2] != [0, 0] or methods[2] > 1:
        raise ImageFileError(f"the PNG has an invalid header: {bits} bits, colour type {colour}, methods {methods}")
    return colour


def _check_kind(kind: bytes, before: bytes, pixels: bool) -> None:
    """Refuse a chunk that must not stand here, behind one of the kind `before`; `pixels`: they have begun."""
    if kind == b"acTL" and not pixels:
        raise AnimationError("the PNG is an animation")
    if kind == b"IHDR" and before:
        raise ImageFileError("the PNG has a second header")
    if kind == b"IDAT" and pixels and before != b"IDAT":
        raise ImageFileError("the PNG has other chunks between its IDAT chunks")
    if kind != b"IEND" and kind not in _PNG_PICTURE and not kind[0] & 0x20:
        raise ImageFileError(f"the PNG has an unknown critical chunk, {_shown(kind)}")


def _check_crc(whole: memoryview) -> None:
    if zlib.crc32(whole[4:-4]) != int.from_bytes(whole[-4:], "big"):
        raise ImageFileError(f"the PNG has a wrong checksum in its chunk {bytes(whole[4:8]).decode('ascii')}")


def _shown(kind: bytes) -> str:
    return kind.decode("ascii") if kind.isalpha() else kind.hex()


def palette_size(stripped: bytes) -> int:
    """Return the number of colours in the palette of a PNG that `strip_metadata` returned; 0 if it has none."""
    length, kind = stripped[33:37], stripped[37:41]
    return int.from_bytes(length, "big") // 3 if is_png(stripped) and kind == b"PLTE" else 0


def _strip_webp(content: bytes) -> bytes:
    end = min(len(content), 8 + int.from_bytes(content[4:8], "little"))
    at, parts = 12, [b"WEBP"]
    for _ in range(_MOST_PARTS):
        kind, data = content[at : at + 4], at + 8
        following = data + int.from_bytes(content[at + 4 : data], "little")
        if following > end:
            raise ImageFileError("the WebP is cut off")
        padding = content[following : following + 1].ljust(1, b"\0") if (following - data) % 2 else b""
        if kind == b"VP8X" and at == 12 and following - data >= 10:
            if content[data] & _WEBP_ANIMATED:
                raise AnimationError("the WebP is an animation")
            parts += [content[at:data], bytes([content[data] & _WEBP_ALPHA]), content[data + 1 : following], padding]
        elif kind in (b"VP8 ", b"VP8L", b"ALPH"):
            parts += [content[at:following], padding]
        elif at == 12:
            raise ImageFileError("the WebP has no readable header")
        if kind in (b"VP8 ", b"VP8L"):
            body = b"".join(parts)
            return b"RIFF" + len(body).to_bytes(4, "little") + body
        at = following + len(padding)
    raise ImageFileError(f"the WebP has more than {_MOST_PARTS} chunks")


def orientation_of(content: bytes) -> int:
    """
    Return the EXIF orientation of an image file, 1 to 8; 1 where there is none that can be read.

    Parameters
    ----------
    content : bytes
        A file, or its beginning. Its metadata must not have been taken out.
    """
    try:
        exif = next(_exif_of(content), b"")
    except ImageFileError:  # cut off, or damaged: whoever decodes it will say so
        return 1
    return _orientation(exif.removeprefix(_EXIF))


def _exif_of(content: bytes) -> Iterator[bytes]:
    if is_jpeg(content):
        for segment in _jpeg_segments(content):
            data = content[segment.start + 4 : segment.end]
            if segment.marker == 0xE1 and data.startswith(_EXIF):
                yield data
            if segment.marker == _JPEG_SCAN:
                return
    elif is_png(content):
        yield from (bytes(chunk.data) for chunk in _png_chunks(content) if chunk.kind == b"eXIf")
    elif is_webp(content):
        at = 12
        for _ in range(_MOST_PARTS):
            size = int.from_bytes(content[at + 4 : at + 8], "little")
            if content[at : at + 4] == b"EXIF":
                yield content[at + 8 : at + 8 + size]
            at += 8 + size + size % 2
            if at >= len(content):
                return


def _orientation(exif: bytes) -> int:
    """Read the orientation out of the first directory of EXIF, which has the form of a TIFF file."""
    order: Literal["little", "big"] = "little" if exif.startswith(b"II") else "big"
    start = int.from_bytes(exif[4:8], order)
    count = int.from_bytes(exif[start : start + 2], order)
    for at in range(start + 2, start + 2 + 12 * min(count, _MOST_TAGS), 12):
        tag, kind = (int.from_bytes(exif[at + place : at + place + 2], order) for place in (0, 2))
        if tag == _ORIENTATION and kind == 3:  # a number of 16 bits
            value = int.from_bytes(exif[at + 8 : at + 10], order)
            return value if 1 <= value <= 8 else 1
    return 1
