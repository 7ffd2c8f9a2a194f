"""The list of image files in docs/serving.md, each tried in training and in serving; what both read is one image."""

import io
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from ddcat_serve.errors import RequestError
from ddcat_serve.http.decoding import decode
from ddcat_train.data.pictures import read_image
from ddcat_train.errors import DataError

PAGE = (Path(__file__).parents[2] / "docs/serving.md").read_text(encoding="utf-8")
ROWS = {
    name: (training, serving)
    for name, training, serving in re.findall(r"^\| (.+?) \| (read|refused) \| (read|refused) \|$", PAGE, re.MULTILINE)
}
PICTURE = np.asarray(Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 8, 3)).astype(np.uint8)).resize((53, 37)))
SIGNATURE = b"\x89PNG\r\n\x1a\n"


def saved(form: str, mode: str = "RGB", **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(PICTURE).convert(mode).save(file, form, **options)
    return file.getvalue()


def with_alpha(form: str, alpha: int, **options: Any) -> bytes:
    image = Image.fromarray(PICTURE).convert("RGBA")
    image.putpixel((3, 4), (1, 2, 3, alpha))
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def chunk(kind: bytes, data: bytes, checksum: int | None = None) -> bytes:
    found = zlib.crc32(kind + data) if checksum is None else checksum
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", found)


def png(bits: int, colour: int, row: bytes, *others: bytes, checksum: int | None = None) -> bytes:
    """Two rows of eight pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 2, bits, colour, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress((b"\0" + row) * 2), checksum)
    return SIGNATURE + header + b"".join(others) + pixels + chunk(b"IEND", b"")


def behind_the_header(content: bytes, more: bytes) -> bytes:
    return content[:33] + more + content[33:]


def animation(form: str) -> bytes:
    file = io.BytesIO()
    frames = [Image.fromarray(PICTURE), Image.fromarray(255 - PICTURE)]
    frames[0].save(file, form, save_all=True, append_images=frames[1:])
    return file.getvalue()


def text() -> PngImagePlugin.PngInfo:
    about = PngImagePlugin.PngInfo()
    about.add_text("about", "x" * 2**21, zip=True)
    return about


JPEG, PNG, PROGRESSIVE = saved("JPEG"), saved("PNG"), saved("JPEG", progressive=True)
TURNED = Image.Exif()
TURNED[0x0112] = 6
SCAN = PROGRESSIVE[PROGRESSIVE.rindex(b"\xff\xda") : -2]
TABLE = JPEG.index(b"\xff\xdb")
PALETTE = chunk(b"PLTE", bytes(range(24)))
FILES: dict[str, list[bytes]] = {
    "JPEG or PNG of 8 bits, in colour or grey": [JPEG, saved("JPEG", "L"), PROGRESSIVE, PNG, saved("PNG", "L")],
    "PNG with a palette, or of 1, 2 or 4 bits": [
        saved("PNG", "P"),
        saved("PNG", "1"),
        png(2, 0, b"\x1b\x1b"),
        png(4, 0, b"\x12\x34\x56\x78"),
        png(4, 3, b"\x12\x34\x56\x70", PALETTE),
        png(8, 3, bytes(8), PALETTE, chunk(b"tRNS", b"\xff\xff")),
    ],
    "PNG or WebP with an alpha channel that is opaque": [saved("PNG", "RGBA"), saved("PNG", "LA")],
    "PNG or WebP with transparent pixels": [
        with_alpha("PNG", 7),
        png(8, 3, bytes(8), PALETTE, chunk(b"tRNS", b"\x07")),
        png(8, 3, bytes(8), PALETTE, chunk(b"tRNS", b"\0\7")),
        png(8, 0, bytes(8), chunk(b"tRNS", bytes(2))),
        png(8, 2, bytes(24), chunk(b"tRNS", bytes(6))),
    ],
    "WebP": [saved("WEBP"), saved("WEBP", "RGBA", lossless=True), saved("WEBP", exif=b"Exif\0\0MM\0*")],
    "BMP, GIF and others": [saved(form) for form in ("BMP", "GIF", "PPM", "JPEG2000")],
    "16 bits a channel": [png(16, colour, bytes(16 * channels)) for colour, channels in ((0, 1), (2, 3), (4, 2), (6, 4))],
    "CMYK": [saved("JPEG", "CMYK")],
    "animated PNG or WebP": [animation("PNG"), animation("WEBP"), behind_the_header(PNG, chunk(b"acTL", bytes(8)))],
    "colour profile, gamma, texts: not applied; orientation in EXIF: as the bundle says": [
        saved("JPEG", exif=TURNED),
        saved("PNG", exif=TURNED),
        saved("JPEG", icc_profile=bytes(999)),
        saved("PNG", icc_profile=bytes(999)),
        behind_the_header(PNG, chunk(b"gAMA", struct.pack(">I", 9))),
        saved("PNG", pnginfo=text()),
        saved("JPEG", comment=b"x"),
    ],
    "metadata that is large, damaged, or has a wrong checksum": [
        saved("PNG", icc_profile=bytes(2**21)),
        behind_the_header(PNG, chunk(b"iCCP", b"a\0\7")),
        behind_the_header(PNG, chunk(b"tEXt", b"a", 1)),
        JPEG[:2] + b"\xff\xe1\0\x10Exif\0\0broken.." + JPEG[2:],
        saved("JPEG", icc_profile=bytes(2**21)),
    ],
    "other pictures or data in the metadata or after the image's end": [
        JPEG + JPEG,
        PNG + JPEG,
        JPEG + b"\xff\xda" * 1000,
        JPEG[:2] + b"\xff\xe1" + struct.pack(">H", 2 + len(JPEG)) + JPEG + JPEG[2:],
    ],
    "surplus bytes between the parts of a JPEG": [
        JPEG[:TABLE] + b"surplus" + JPEG[TABLE:],
        JPEG[:-2] + bytes(9) + JPEG[-2:],
        PROGRESSIVE[:-2] + bytes(9) + PROGRESSIVE[-2:],
        JPEG[:TABLE] + b"\xff" * 9 + JPEG[TABLE:],
    ],
    "cut off, or without an end": [
        *(content[:cut] for content in (JPEG, PROGRESSIVE, PNG, saved("WEBP")) for cut in (30, len(content) // 2, -40)),
        JPEG[:-2],
        PROGRESSIVE[:-2],
        PNG[:-12],
        PNG[:-1],
    ],
    "PNG with a wrong checksum of its pixels, without its palette, with indices beyond it": [
        png(8, 2, bytes(24), checksum=1),
        png(8, 3, bytes(8)),
        png(8, 3, bytes(range(1, 9)), PALETTE),
    ],
    "JPEG whose pixel data are damaged": [JPEG[:-100] + JPEG[-2:]],
    "JPEG of more than 100 scans, PNG of more than 10,000 chunks": [
        PROGRESSIVE[:-2] + SCAN * 100 + PROGRESSIVE[-2:],
        behind_the_header(PNG, chunk(b"abCd", b"") * 10_000),
    ],
}


@pytest.fixture
def read(tmp_path: Path) -> Callable[[bytes], dict[str, np.ndarray]]:
    """Give the image as each reads it; those that refuse the file are left out."""

    def both(content: bytes) -> dict[str, np.ndarray]:
        file = tmp_path / "image"
        file.write_bytes(content)
        found = {}
        for name, reading in (("training", lambda: read_image(file)), ("serving", lambda: decode(content, max_pixels=10_000))):
            try:
                found[name] = reading()
            except (DataError, RequestError) as refusal:
                assert " at 0x" not in str(refusal)  # noqa: PT017
                assert "\n" not in str(refusal)  # noqa: PT017
        return found

    return both


def test_the_list_is_whole() -> None:
    assert list(ROWS) == list(FILES)


@pytest.mark.parametrize("row", FILES)
@pytest.mark.filterwarnings("error")
def test_each_file_is_read_or_refused_as_the_page_says(row: str, read: Callable[[bytes], dict[str, np.ndarray]]) -> None:
    expected = {name for name, outcome in zip(("training", "serving"), ROWS[row], strict=True) if outcome == "read"}
    for place, content in enumerate(FILES[row]):
        found = read(content)
        assert set(found) == expected, (place, content[:40])
        if len(found) == 2:
            assert found["training"].shape == found["serving"].shape
            apart = np.abs(found["training"].astype(int) - found["serving"]).max()
            assert apart <= (2 if content.startswith(b"\xff\xd8") else 0), place  # two decoders of JPEG
