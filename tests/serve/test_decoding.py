import contextlib
import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, ImageFile

from ddcat_serve.errors import RequestError
from ddcat_serve.http.decoding import decode, size_of

LIMIT = 10_000


def png_of(image: Image.Image, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", **options)
    return file.getvalue()


def chunk_of(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_header(width: int, height: int, bits: int = 8) -> bytes:
    header = chunk_of(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk_of(b"IDAT", zlib.compress(b"\0" * 100)) + chunk_of(b"IEND", b"")


def jpeg_claiming(height: int, width: int) -> bytes:
    """A real small JPEG whose frame header is forged."""
    content = bytearray(simplejpeg.encode_jpeg(np.zeros((16, 16, 3), np.uint8)))
    frame = content.index(b"\xff\xc0")
    content[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    return bytes(content)


def status_of(content: bytes, max_pixels: int = LIMIT) -> tuple[int, str]:
    with pytest.raises(RequestError) as caught:
        decode(content, max_pixels=max_pixels)
    return caught.value.status, str(caught.value)


@settings(max_examples=30, deadline=None)
@given(arrays(np.uint8, st.tuples(st.integers(1, 40), st.integers(1, 40), st.just(3))))
def test_png_pixels_come_back_as_they_are(pixels: np.ndarray) -> None:
    decoded = decode(png_of(Image.fromarray(pixels)), max_pixels=LIMIT)
    assert decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, pixels)


def test_jpeg_equals_another_decoder_closely(picture: np.ndarray) -> None:
    smooth = np.asarray(Image.fromarray(picture).resize((96, 64), Image.Resampling.BICUBIC))
    content = simplejpeg.encode_jpeg(np.ascontiguousarray(smooth), quality=95, colorsubsampling="444")
    decoded = decode(content, max_pixels=LIMIT)
    reference = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    assert decoded.shape == (64, 96, 3)
    assert np.abs(decoded.astype(int) - reference).max() <= 2


def test_transparency_is_refused(picture: np.ndarray) -> None:
    image = Image.fromarray(picture).convert("RGBA")
    image.putpixel((3, 4), (1, 2, 3, 254))
    assert status_of(png_of(image)) == (400, "the PNG has transparent pixels, whose colour is undefined: flatten it")
    palette = Image.fromarray(picture).convert("P")
    assert status_of(png_of(palette, transparency=int(np.asarray(palette)[0, 0])))[0] == 400


def test_bombs_are_refused_by_their_header() -> None:
    assert status_of(png_header(60_000, 60_000), 89_000_000)[0] == 413
    assert status_of(png_header(2**31 - 1, 2**31 - 1))[0] == 413
    assert status_of(jpeg_claiming(65_500, 65_500), 89_000_000)[0] == 413
    assert status_of(png_header(0, 5))[0] == 400


def test_a_second_header_is_refused_before_any_pixel_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    def decodes(image: ImageFile.ImageFile) -> None:
        raise AssertionError(f"{image.size} are decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", decodes)
    small, large = png_header(20, 20), png_header(8000, 8000)
    after = len(b"\x89PNG\r\n\x1a\n") + 25  # of the first header
    twice = small[:after] + large[len(b"\x89PNG\r\n\x1a\n") :]
    assert size_of(twice, max_pixels=LIMIT) == (20, 20)
    assert status_of(twice) == (400, "the PNG has a second header")


def test_the_limit_itself_is_allowed(picture: np.ndarray) -> None:
    content = png_of(Image.fromarray(picture))
    assert decode(content, max_pixels=37 * 53).shape == picture.shape
    assert status_of(content, 37 * 53 - 1)[0] == 413


def test_no_refusal_names_a_place_in_memory(picture: np.ndarray) -> None:
    content = bytearray(webp_of(picture))
    content[20:] = bytes(len(content) - 20)
    for broken in (bytes(content), webp_of(picture)[:12] + b"\0" * 40, bytes(webp_of(picture, lossless=True)[:60])):
        with pytest.raises(RequestError) as caught:
            decode(broken, max_pixels=LIMIT)
        assert "0x" not in str(caught.value)
        assert "BytesIO" not in str(caught.value)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_no_damage_raises_anything_else(data: st.DataObject) -> None:
    pixels = np.arange(20 * 20 * 3, dtype=np.uint8).reshape(20, 20, 3)
    whole = data.draw(
        st.sampled_from(
            [
                simplejpeg.encode_jpeg(pixels), png_of(Image.fromarray(pixels).convert("P")), webp_of(pixels),
                webp_of(pixels, lossless=True),
            ]
        )
    )  # fmt: skip
    content = bytearray(whole)
    for place, value in data.draw(st.lists(st.tuples(st.integers(3, len(whole) - 1), st.integers(0, 255)), max_size=6)):
        content[place] = value
    with contextlib.suppress(RequestError):
        decoded = decode(bytes(content[: data.draw(st.integers(0, len(whole)))]), max_pixels=LIMIT)
        assert decoded.dtype == np.uint8
        assert decoded.shape[2] == 3
        assert decoded.shape[0] * decoded.shape[1] <= LIMIT


def webp_of(pixels: np.ndarray, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "WEBP", **options)
    return file.getvalue()


@pytest.mark.parametrize("options", [{"lossless": True}, {"quality": 95}, {"lossless": True, "exif": b"Exif\0\0MM\0*"}])
def test_webp_is_what_pillow_makes_of_it(picture: np.ndarray, options: dict[str, Any]) -> None:
    content = webp_of(picture, **options)
    assert size_of(content, max_pixels=LIMIT) == picture.shape[:2]  # VP8L, VP8 and VP8X
    decoded = decode(content, max_pixels=LIMIT)
    if options.get("lossless"):
        np.testing.assert_array_equal(decoded, picture)
    else:
        np.testing.assert_array_equal(decoded, np.asarray(Image.open(io.BytesIO(content)).convert("RGB")))


def test_webp_that_is_refused(picture: np.ndarray) -> None:
    file = io.BytesIO()
    frames = [Image.fromarray(picture), Image.fromarray(255 - picture)]
    frames[0].save(file, "WEBP", save_all=True, append_images=frames[1:])
    assert status_of(file.getvalue()) == (415, "the WebP is an animation: send one of its pictures")
    assert status_of(webp_of(picture)[:25]) == (400, "the WebP has no readable header")
    large = bytearray(webp_of(picture, lossless=True, exif=b"Exif\0\0MM\0*"))
    large[24:30] = b"\xff" * 6  # a canvas of 2**24 x 2**24: Pillow would allocate it
    assert status_of(bytes(large), 89_000_000)[0] == 413
    seen = np.dstack([picture, np.full(picture.shape[:2], 255, np.uint8)])
    seen[0, 0, 3] = 9
    assert (
        status_of(webp_of(seen, lossless=True))[1] == "the WebP has transparent pixels, whose colour is undefined: flatten it"
    )


def test_jpegs_that_are_refused_and_one_that_has_more_than_its_pixels(picture: np.ndarray) -> None:
    cmyk, whole = io.BytesIO(), simplejpeg.encode_jpeg(picture)
    Image.fromarray(picture).convert("CMYK").save(cmyk, "JPEG")
    assert status_of(cmyk.getvalue()) == (415, "the JPEG is CMYK: convert it to RGB")
    tables = bytearray(whole)
    place = tables.index(b"\xff\xc4") + 5  # of the numbers of codes by their length
    tables[place : place + 4] = b"\xff" * 4
    status, message = status_of(bytes(tables))
    assert (status, message.startswith("the JPEG is damaged: ")) == (400, True)
    surplus = whole[:-2] + b"\0\0\0\0" + whole[-2:]
    np.testing.assert_array_equal(decode(surplus, max_pixels=LIMIT), decode(whole, max_pixels=LIMIT))


def test_pngs_that_are_refused_and_one_whose_alpha_is_opaque(picture: np.ndarray) -> None:
    image = Image.fromarray(picture)
    moving = png_of(image, save_all=True, append_images=[Image.fromarray(255 - picture)])
    assert status_of(moving) == (415, "the PNG is an animation: send one of its pictures")
    np.testing.assert_array_equal(decode(png_of(image.convert("RGBA")), max_pixels=LIMIT), picture)
    few = Image.frombytes("P", (8, 8), bytes(range(64)))
    few.putpalette([1, 2, 3])
    assert status_of(png_of(few))[1] == "the PNG has indices beyond its palette, whose colour is undefined"


def test_the_size_comes_from_the_header_alone(picture: np.ndarray) -> None:
    for content in (png_of(Image.fromarray(picture)), simplejpeg.encode_jpeg(picture), webp_of(picture)):
        assert size_of(content, max_pixels=LIMIT) == picture.shape[:2]
        assert size_of(content[: len(content) // 2], max_pixels=LIMIT) == picture.shape[:2]
        with pytest.raises(RequestError):
            size_of(content, max_pixels=37 * 53 - 1)
