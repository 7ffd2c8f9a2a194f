"""What is taken out of an image file, and what a file is refused for, without a decoder."""

import contextlib
import io
import random
import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from ddcat.image_files import AnimationError, ImageFileError, jpeg_frame, palette_size, strip_metadata

PICTURE = np.asarray(Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 8, 3)).astype(np.uint8)).resize((53, 37)))
SIGNATURE = b"\x89PNG\r\n\x1a\n"
Chunks = Sequence[tuple[bytes, bytes]]


def saved(form: str, picture: np.ndarray = PICTURE, mode: str = "RGB", **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).convert(mode).save(file, form, **options)
    return file.getvalue()


def pixels(content: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image.convert("RGB"))


def chunk(kind: bytes, data: bytes, checksum: int | None = None) -> bytes:
    found = zlib.crc32(kind + data) if checksum is None else checksum
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", found)


def chunks(content: bytes) -> list[tuple[bytes, bytes]]:
    at, found = len(SIGNATURE), []
    while at < len(content):
        size = int.from_bytes(content[at : at + 4], "big")
        found.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + size]))
        at += 12 + size
    return found


def png(parts: Chunks, broken: bytes = b"") -> bytes:
    """Put a PNG together; the checksum of chunks of the kind `broken` is wrong."""
    return SIGNATURE + b"".join(chunk(kind, data, 1 if kind == broken else None) for kind, data in parts)


def refusal(content: bytes) -> str:
    with pytest.raises(ImageFileError) as caught:
        strip_metadata(content)
    return str(caught.value)


METADATA: dict[str, Chunks] = {
    "profile": [(b"iCCP", b"a\0\0" + zlib.compress(bytes(2**21)))],
    "texts": [(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**21))), (b"iTXt", b"a\0\1\0\0\0" + zlib.compress(bytes(2**21)))],
    "many texts": [(b"tEXt", b"a\0b")] * 5000,
    "broken": [(kind, b"") for kind in (b"iCCP", b"gAMA", b"cHRM", b"sRGB", b"pHYs", b"fcTL", b"fdAT", b"zTXt", b"eXIf")],
    "compression": [(b"iCCP", b"a\0\7"), (b"zTXt", b"a\0\7")],
    "orientation": [(b"eXIf", b"MM\0*\0\0\0\x08\0\1\x01\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0")],
    "colours": [(b"gAMA", struct.pack(">I", 9)), (b"cICP", b"\1\1\1\1"), (b"bKGD", bytes(6)), (b"sBIT", b"\1\1\1")],
    "private": [(b"prVt", random.Random(0).randbytes(1000)), (b"\xe9\xe9Ve", b"")],
}


@pytest.mark.parametrize("name", METADATA)
@pytest.mark.parametrize("mode", ["RGB", "P", "L"])
def test_no_chunk_of_metadata_changes_a_png(name: str, mode: str) -> None:
    plain = saved("PNG", mode=mode)
    header, *others = chunks(plain)
    for parts in ([header, *METADATA[name], *others], [header, *others[:-1], *METADATA[name], others[-1]]):
        for broken in (b"", METADATA[name][0][0]):  # a wrong checksum, too
            assert strip_metadata(png(parts, broken)) == strip_metadata(plain)
    np.testing.assert_array_equal(pixels(strip_metadata(plain)), pixels(plain))


def test_what_is_of_a_png_s_picture_stays() -> None:
    alpha = saved("PNG", mode="P", transparency=3)
    with Image.open(io.BytesIO(strip_metadata(alpha))) as image:
        assert image.info == {"transparency": 3}
    assert palette_size(strip_metadata(alpha)) == len(dict(chunks(alpha))[b"PLTE"]) // 3
    assert palette_size(strip_metadata(saved("PNG"))) == 0
    assert strip_metadata(saved("PNG") + b"behind the end" * 1000) == strip_metadata(saved("PNG"))


@pytest.mark.parametrize("size", [0, 1, 100])
def test_a_png_of_many_small_chunks_of_pixels_is_one_of_a_large_one(size: int) -> None:
    plain = saved("PNG")
    header, *_, end = chunks(plain)
    data = b"".join(data for kind, data in chunks(plain) if kind == b"IDAT")
    step = size or len(data)
    pieces = [(b"IDAT", data[at : at + step]) for at in range(0, len(data), step)]
    assert strip_metadata(png([header, (b"IDAT", b""), *pieces, (b"IDAT", b""), end])) == strip_metadata(plain)


HEADER, PIXELS, END = chunks(saved("PNG"))
INDEXED, PALETTE, INDICES, _ = chunks(saved("PNG", mode="P"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (png([HEADER, PIXELS]), "is cut off"),
        (saved("PNG")[:-20], "is cut off"),
        (saved("PNG")[:20], "no readable header"),
        (png([PIXELS, HEADER, END]), "no readable header"),
        (png([(b"CgBI", bytes(4)), HEADER, PIXELS, END]), "no readable header"),
        (png([HEADER, END]), "has no pixels"),
        (png([HEADER, HEADER, PIXELS, END]), "a second header"),
        (
            png([HEADER, (b"IDAT", PIXELS[1][:50]), (b"tEXt", b"a\0b"), (b"IDAT", PIXELS[1][50:]), END]),
            "between its IDAT chunks",
        ),
        (png([HEADER, (b"ABCd", b""), PIXELS, END]), "an unknown critical chunk, ABCd"),
        (png([HEADER, (b"A\nCd", b""), PIXELS, END]), "an unknown critical chunk, 410a4364"),
        (png([HEADER, PIXELS, END], broken=b"IHDR"), "a wrong checksum in its chunk IHDR"),
        (png([HEADER, PIXELS, END], broken=b"IDAT"), "a wrong checksum in its chunk IDAT"),
        (png([INDEXED, PALETTE, INDICES, END], broken=b"PLTE"), "a wrong checksum in its chunk PLTE"),
        (png([INDEXED, PALETTE, (b"tRNS", b"\0"), INDICES, END], broken=b"tRNS"), "a wrong checksum in its chunk tRNS"),
        (png([INDEXED, INDICES, END]), "but no palette"),
        (png([INDEXED, INDICES, PALETTE, END]), "an invalid palette"),
        (png([INDEXED, PALETTE, PALETTE, INDICES, END]), "an invalid palette"),
        (png([INDEXED, (b"PLTE", b"\1\2\3\4"), INDICES, END]), "an invalid palette"),
        (png([INDEXED, (b"PLTE", b""), INDICES, END]), "an invalid palette"),
        *(
            (png([(b"IHDR", HEADER[1][:8] + bytes(kind)), PIXELS, END]), "an invalid header")
            for kind in ((8, 7, 0, 0, 0), (3, 0, 0, 0, 0), (8, 2, 1, 0, 0), (8, 2, 0, 1, 0), (8, 2, 0, 0, 2))
        ),
    ],
)
def test_a_png_that_breaks_its_format_is_refused(content: bytes, message: str) -> None:
    assert message in refusal(content)


@pytest.mark.parametrize("kind", [b"abCd", b"IDAT", b"tEXt"])
def test_millions_of_chunks_are_refused_without_being_walked(kind: bytes) -> None:
    content = png([HEADER]) + chunk(kind, b"") * 1_000_000 + b"broken"
    assert refusal(content) == "the PNG has more than 10000 chunks"  # and not that the last of them is broken


def segment(marker: int, data: bytes) -> bytes:
    return bytes((0xFF, marker)) + struct.pack(">H", 2 + len(data)) + data


SCANS = b"\xff\xda\0\x08\1\1\0\0\0\0" * 200


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_rows": 1}, {"optimize": True}])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_nothing_behind_or_beside_a_jpeg_s_picture_changes_it(options: dict[str, Any], mode: str) -> None:
    plain = saved("JPEG", mode=mode, **options)
    begin, rest = plain[:2], plain[2:]
    preview = saved("JPEG", PICTURE[:16, :16])
    for content in (
        plain + random.Random(8).randbytes(8 << 20),  # holds FF DA 128 times, as a video behind a picture does
        plain + preview,
        plain + SCANS,
        begin + segment(0xE1, b"Exif\0\0" + preview + SCANS) + rest,
        begin
        + segment(0xE2, b"ICC_PROFILE\0\1\1" + SCANS)
        + segment(0xFE, SCANS)
        + segment(0xED, b"Photoshop 3.0\0008BIM\3\xed")
        + rest,
        begin + segment(0xE5, b"") * 1000 + rest,
        begin + b"\xff" * 1000 + rest,  # fill bytes
        plain[:20] + b"\0" * 1000 + plain[20:],
        begin + b"\xff\xe5\0\0" + rest,  # a length that is none: libjpeg goes on behind it
    ):
        stripped = strip_metadata(content)
        assert jpeg_frame(content) == jpeg_frame(plain) == (37, 53, 3 if mode == "RGB" else 1)
        np.testing.assert_array_equal(pixels(stripped), pixels(plain))
        assert len(stripped) <= len(plain) + 4


def test_a_jpeg_s_scans_are_counted_wherever_they_stand() -> None:
    content = saved("JPEG", progressive=True)
    last = content.rindex(b"\xff\xda")
    table = content[content.rindex(b"\xff\xc4") : last]
    scan = content[last:-2]
    assert len(strip_metadata(content[:-2] + scan * 50 + content[-2:])) == len(strip_metadata(content)) + 50 * len(scan)
    for repeated in (scan, table + scan, b"\xff\xff" + scan, b"\xff\xd0" + scan):
        assert refusal(content[:-2] + repeated * 100 + content[-2:]) == "the JPEG has more than 100 scans"


@pytest.mark.parametrize("before", range(-3, 4))
def test_the_end_of_a_long_scan_is_found_wherever_it_lies(before: int) -> None:
    plain = saved("JPEG")
    scan = (1 << 18) * 2 - 1 + before  # so many bytes of it: what is searched at once ends near its end
    content = plain[: plain.index(b"\xff\xda") + 14] + b"\xff\0" * (scan // 2) + b"\0" * (scan % 2) + b"\xff\xd9"
    assert strip_metadata(content + b"behind" * 100_000) == content


def test_a_jpeg_that_breaks_its_format_is_refused() -> None:
    plain = saved("JPEG")
    assert refusal(plain[:-2]) == refusal(plain[:-100]) == refusal(plain[:100]) == refusal(plain[:5]) == "the JPEG is cut off"
    assert refusal(plain[:2] + b"\xff\x02" + plain[2:]) == "the JPEG has an unknown segment, 0x02"
    for repeated in (b"\xff\xe5\0\2", b"\xff\xe5\0\0", b"\xff\x01", b"\xff\xd0"):
        assert refusal(plain[:2] + repeated * 1_000_000) == "the JPEG has more than 10000 segments"
    for stray in (b"\xff", b"\0", b"\xff\0"):
        assert refusal(plain[:20] + stray * 100_000 + plain[20:]) == "the JPEG has more than 65536 bytes between its segments"
        with pytest.raises(ImageFileError, match="between its segments"):
            jpeg_frame(plain[:20] + stray * 100_000 + plain[20:])
    for content in (plain[:2], plain[:2] + plain[-2:], b"\xff\xd8\xff"):
        with pytest.raises(ImageFileError):
            jpeg_frame(content)


def riff(*parts: bytes) -> bytes:
    body = b"WEBP" + b"".join(parts)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def webp_chunk(kind: bytes, data: bytes) -> bytes:
    return kind + struct.pack("<I", len(data)) + data + bytes(len(data) % 2)


@pytest.mark.parametrize("options", [{"lossless": True}, {"quality": 80}])
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_nothing_behind_or_beside_a_webp_s_picture_changes_it(options: dict[str, Any], mode: str) -> None:
    plain = saved("WEBP", mode=mode, **options)
    full = saved("WEBP", mode=mode, icc_profile=bytes(3001), exif=b"Exif\0\0MM\0*", xmp=b"x" * 999, **options)
    others = webp_chunk(b"abcd", b"odd") * 1000
    header, rest = full[12:30], full[30:]
    assert header.startswith(b"VP8X")
    for content in (
        plain,
        full,
        full + b"behind",
        riff(header, others, rest),
        riff(header, rest, others),
        riff(plain[12:], others),
    ):
        stripped = strip_metadata(content)
        np.testing.assert_array_equal(pixels(stripped), pixels(plain))
        assert b"ICCP" not in stripped
        assert len(stripped) <= len(plain) + 30


def test_a_webp_that_breaks_its_format_is_refused() -> None:
    plain, full = saved("WEBP"), saved("WEBP", exif=b"Exif\0\0MM\0*")
    assert refusal(plain[:-8]) == refusal(full[:40]) == "the WebP is cut off"
    assert refusal(riff(webp_chunk(b"abcd", b""), plain[12:])) == "the WebP has no readable header"
    assert refusal(riff(full[12:30], webp_chunk(b"abcd", b"") * 1_000_000)) == "the WebP has more than 10000 chunks"


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_an_animation_is_refused_as_such(form: str) -> None:
    file = io.BytesIO()
    frames = [Image.fromarray(PICTURE), Image.fromarray(255 - PICTURE)]
    frames[0].save(file, form, save_all=True, append_images=frames[1:])
    with pytest.raises(AnimationError):
        strip_metadata(file.getvalue())


WHOLE = [
    saved("JPEG"), saved("JPEG", progressive=True), saved("PNG", mode="P", transparency=3), saved("PNG", icc_profile=bytes(99)),
    saved("WEBP"), saved("WEBP", mode="RGBA", exif=b"Exif\0\0MM\0*"),
]  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_no_damage_raises_anything_else(data: st.DataObject) -> None:
    content = bytearray(data.draw(st.sampled_from(WHOLE)))
    for place, value in data.draw(st.lists(st.tuples(st.integers(0, len(content) - 1), st.binary(max_size=3)), max_size=6)):
        content[place : place + data.draw(st.integers(0, 3))] = value
    damaged = bytes(content[: data.draw(st.integers(0, len(content)))])
    with contextlib.suppress(ImageFileError):
        stripped = strip_metadata(damaged)
        assert strip_metadata(stripped) == stripped
    if damaged.startswith(b"\xff\xd8\xff"):
        with contextlib.suppress(ImageFileError):
            jpeg_frame(damaged)


def test_other_formats_come_back_as_they_are() -> None:
    for content in (saved("GIF"), saved("BMP"), b"", b"text", b"RIFF....WAVE"):
        assert strip_metadata(content) is content


def test_a_real_png_with_texts_and_a_profile_is_stripped() -> None:
    about = PngImagePlugin.PngInfo()
    about.add_text("parameters", "x" * 100_000, zip=True)
    content = saved("PNG", pnginfo=about, icc_profile=bytes(2**21), dpi=(72, 72))
    assert strip_metadata(content) == strip_metadata(saved("PNG"))
