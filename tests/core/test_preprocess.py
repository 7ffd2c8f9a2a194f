"""Files become the input of a graph, and labels become masks of the files' size: by OpenCV's and Pillow's own answers."""

import io
import json
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from ddcat.image_files import ImageFileError, orientation_of
from ddcat.preprocess import AS_STORED, FileRule, Resize, network_size, preprocess, restore

PIXELS = np.random.default_rng(0).integers(0, 256, (45, 60, 3), np.uint8)
SIZES = st.tuples(st.integers(1, 80), st.integers(1, 80))


def saved(form: str, pixels: np.ndarray = PIXELS, **options: Any) -> bytes:
    return encoded(Image.fromarray(pixels), form, **options)


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def beyond_its_palette() -> Image.Image:
    image = Image.frombytes("P", (8, 8), bytes(range(64)))
    image.putpalette([1, 2, 3])
    return image


def oriented(form: str, value: int) -> bytes:
    exif = Image.Exif()
    exif[0x010F] = "a camera"
    exif[0x0112] = value
    return saved(form, exif=exif)


def test_without_a_rule_an_image_is_as_it_is_stored() -> None:
    for content in (saved("PNG"), oriented("PNG", 6)):
        made = preprocess(content, AS_STORED)
        assert np.array_equal(made.pixels, PIXELS)
        assert made.size == (45, 60)
    assert preprocess(PIXELS, AS_STORED).pixels is PIXELS


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("value", range(1, 9))
def test_an_image_is_turned_as_pillow_turns_it(form: str, value: int) -> None:
    content = oriented(form, value)
    assert orientation_of(content) == value
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(content))))
    made = preprocess(content, FileRule(orientation="exif"))
    assert np.array_equal(made.pixels, expected)
    assert made.size == expected.shape[:2]


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(["PNG", "JPEG", "WEBP"]), st.integers(1, 8), st.data())
def test_damaged_exif_is_none(form: str, value: int, data: st.DataObject) -> None:
    content = bytearray(oriented(form, value))
    for _ in range(data.draw(st.integers(1, 20))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    assert 1 <= orientation_of(bytes(content[: data.draw(st.integers(0, len(content)))])) <= 8


@pytest.mark.parametrize(
    ("to", "expected"),
    [(30, (22, 30)), (120, (90, 120)), (60, (45, 60)), ((33, 35), (33, 35)), ((45, 60), (45, 60)), (1, (1, 1))],
)
def test_the_size_follows_from_the_rule(to: int | tuple[int, int], expected: tuple[int, int]) -> None:
    rule = FileRule(resize=Resize(to=to))
    assert network_size((45, 60), rule) == expected
    made = preprocess(saved("PNG"), rule)
    assert made.pixels.shape == (*expected, 3)
    assert made.size == (45, 60)
    assert preprocess(made.pixels, rule).pixels is made.pixels  # it has the size


def test_the_kernels_are_those_of_opencv_and_pillow() -> None:
    for to, area in (((30, 40), cv2.INTER_AREA), ((90, 80), cv2.INTER_LINEAR), ((30, 80), cv2.INTER_LINEAR)):
        expected = {
            "area": cv2.resize(PIXELS, to[::-1], interpolation=area),
            "linear": cv2.resize(PIXELS, to[::-1], interpolation=cv2.INTER_LINEAR),
            "antialias": np.asarray(Image.fromarray(PIXELS).resize(to[::-1], Image.Resampling.BILINEAR)),
        }
        for kernel, pixels in expected.items():
            rule = FileRule.model_validate({"resize": {"to": to, "kernel": kernel}})
            assert np.array_equal(preprocess(saved("PNG"), rule).pixels, pixels), (to, kernel)


@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize("values", [(0, 65535), (100, 4195), (7, 8)])
def test_16_bits_are_brought_to_8_between_two_values(values: tuple[int, int], grey: bool) -> None:
    deep = np.random.default_rng(1).integers(0, 5000, (9, 11) if grey else (9, 11, 3)).astype(np.uint16)
    content = cv2.imencode(".png", deep if grey else deep[..., ::-1])[1].tobytes()
    low, high = values
    exact = np.clip((deep.astype(np.float64) - low) / (high - low), 0, 1) * 255
    made = preprocess(content, FileRule(values=values)).pixels
    assert made.shape == (9, 11, 3)
    assert np.abs(made - (exact[..., None] if grey else exact)).max() <= 0.5 + 1e-9


def test_files_of_another_depth_are_refused() -> None:
    with pytest.raises(ImageFileError, match="8 bits a channel: expected 16 bits"):
        preprocess(saved("PNG"), FileRule(values=(0, 65535)))
    clear = cv2.imencode(".png", np.zeros((4, 4, 4), np.uint16))[1].tobytes()
    with pytest.raises(ImageFileError, match="has transparency"):
        preprocess(clear, FileRule(values=(0, 65535)))
    with pytest.raises(ValueError, match="lower value first"):
        FileRule(values=(5, 5))


@settings(max_examples=100, deadline=None)
@given(SIZES, SIZES)
def test_each_pixel_of_a_mask_has_the_label_of_the_nearest(small: tuple[int, int], size: tuple[int, int]) -> None:
    for axis in (0, 1):
        places = np.indices(small)[axis].astype(np.uint8)  # each label is its own row, or column
        restored = restore(places, size)
        assert restored.shape == size
        middle = (np.indices(size)[axis] + 0.5) * small[axis] / size[axis]
        assert np.abs(restored + 0.5 - middle).max() <= 0.5 + 1e-3  # of two that are as near, either


def test_a_mask_of_the_right_size_is_left_alone() -> None:
    labels = PIXELS[..., 0]
    assert restore(labels, (45, 60)) is labels


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not an image"),
        (b"text", "not an image"),
        (saved("PNG")[:-40], "cut off"),
        (saved("PNG", PIXELS[..., 0].astype(np.uint16)), "16 bits"),
        (saved("GIF"), "not an image"),
        (encoded(Image.new("CMYK", (8, 8)), "JPEG"), "mode CMYK: expected RGB or grey of 8 bits"),
        (encoded(beyond_its_palette(), "PNG"), "indices beyond its palette"),
        (encoded(Image.fromarray(PIXELS), "WEBP")[:400], "cut off|cannot be decoded"),
    ],
)
def test_what_would_be_a_guess_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(ImageFileError, match=message) as caught:
        preprocess(content, AS_STORED)
    assert "\n" not in str(caught.value)
    assert "0x" not in str(caught.value)


@pytest.mark.parametrize("to", [0, -1, 5.5, "5", True, [1], [1, 2, 3], [0, 5]])
def test_a_rule_is_strict(to: Any) -> None:
    with pytest.raises(ValueError, match="resize"):
        FileRule.model_validate_json(json.dumps({"resize": {"to": to}}))
