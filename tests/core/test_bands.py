"""Bands of a file: which are read, in what order, and what is refused."""

import io
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from ddcat.bands import by_band, chosen_bands, displayed
from ddcat.errors import DdcatError
from ddcat.image_files import ImageFileError
from ddcat.manifest import Preprocessing
from ddcat.preprocess import AS_STORED, FileRule, Resize, apply_rule, preprocess
from tests.banded import VALUES, bands_of, encoded


def test_without_bands_a_rule_is_written_as_before() -> None:
    assert "bands" not in AS_STORED.model_dump_json()
    rule = FileRule(bands=(4, 3, 2))
    assert FileRule.model_validate_json(rule.model_dump_json()) == rule
    assert FileRule.model_validate_json('{"bands": 16}').channels == 16
    for text in ('{"bands": 17}', '{"bands": 0}', '{"bands": []}', f'{{"bands": {[1] * 17}}}', '{"bands": [0]}'):
        with pytest.raises(ValidationError):
            FileRule.model_validate_json(text)


@pytest.mark.parametrize("changes", [{"std": (1.0, 1.0)}, {"mean": (0.5,) * 3}, {"colour": "RGB"}])
def test_a_manifest_has_one_mean_a_band(changes: dict[str, object]) -> None:
    form = {"bands": 5, "colour": "bands", "mean": (0.5,) * 5, "std": (0.2,) * 5}
    assert Preprocessing.model_validate(form).channels == 5
    with pytest.raises(ValidationError, match=r"expected mean and std of 5 channels|do not go together"):
        Preprocessing.model_validate(form | changes)


@given(st.integers(1, 20), st.lists(st.integers(1, 20), min_size=1, max_size=16))
def test_bands_are_read_in_the_order_that_is_named(found: int, wanted: list[int]) -> None:
    if max(wanted) > found:
        with pytest.raises(ValueError, match=f"it has {found} bands?, but data.bands names band {max(wanted)}"):
            chosen_bands(found, wanted)
    else:
        assert chosen_bands(found, wanted) == tuple(wanted)
    assert chosen_bands(found, found) == tuple(range(1, found + 1))
    with pytest.raises(ValueError, match=rf"it has {found} bands?, expected {found + 1}"):
        chosen_bands(found, found + 1)


@pytest.mark.parametrize("count", [1, 3, 4])
@pytest.mark.parametrize("deep", [False, True])
def test_the_channels_of_a_png_are_bands(count: int, deep: bool, tmp_path: Path) -> None:
    pixels, _ = bands_of(count)
    stored = pixels if deep else (pixels // 17).clip(0, 255).astype(np.uint8)
    content = encoded(tmp_path / "a.png", stored).read_bytes()
    values = VALUES if deep else None
    whole = preprocess(content, FileRule(bands=count, values=values)).pixels
    exact = np.rint((pixels.astype(float) - VALUES[0]) / (VALUES[1] - VALUES[0]) * 255) if deep else stored
    assert np.abs(whole - exact.clip(0, 255)).max() <= deep  # a half is rounded either way
    order = tuple(range(count, 0, -1))
    assert np.array_equal(preprocess(content, FileRule(bands=order, values=values)).pixels, whole[..., ::-1])
    if count == 3:
        assert np.array_equal(preprocess(content, FileRule(values=values)).pixels, whole)


def test_files_of_other_bands_are_refused(tmp_path: Path) -> None:
    file = io.BytesIO()
    Image.fromarray(np.zeros((40, 50, 3), np.uint8)).save(file, "JPEG")
    for rule, message in (
        (FileRule(bands=5), "it has 3 bands, expected 5"),
        (FileRule(bands=(4, 3, 2)), "it has 3 bands, but data.bands names band 4"),
        (FileRule(bands=1), "it has 3 bands, expected 1"),
        (FileRule(bands=5, values=VALUES), "the image has 8 bits a channel"),
    ):
        with pytest.raises(ImageFileError, match=message):
            preprocess(file.getvalue(), rule)
    with pytest.raises(ImageFileError, match="it is not an image: use TIFF, PNG, JPEG or WebP"):
        preprocess(b"BM12", FileRule(bands=5))
    palette = io.BytesIO()
    Image.fromarray(np.zeros((4, 5), np.uint8), "P").save(palette, "PNG")
    with pytest.raises(ImageFileError, match="it has a palette"):
        preprocess(palette.getvalue(), FileRule(bands=1))


def test_a_tiff_without_rasterio_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rasterio", None)
    with pytest.raises(DdcatError, match=r'a library is missing .*rasterio.*: pip install "\.\[geo\]"'):
        preprocess(b"II*\0", FileRule(bands=5))


def test_a_tiff_of_five_bands_is_read_as_gdal_reads_it(tmp_path: Path) -> None:
    pytest.importorskip("rasterio", reason="rasterio is not installed")
    pixels, _ = bands_of(5)
    content = encoded(tmp_path / "a.tif", pixels).read_bytes()
    whole = preprocess(content, FileRule(bands=5, values=VALUES)).pixels
    exact = np.rint((pixels.astype(float) - VALUES[0]) / (VALUES[1] - VALUES[0]) * 255).clip(0, 255)
    assert np.abs(whole - exact).max() <= 1
    chosen = preprocess(content, FileRule(bands=(5, 1, 5), values=VALUES)).pixels
    assert np.array_equal(chosen, whole[..., [4, 0, 4]])
    for rule, message in (
        (FileRule(bands=6, values=VALUES), "it has 5 bands, expected 6"),
        (FileRule(bands=(1, 6), values=VALUES), "it has 5 bands, but data.bands names band 6"),
        (FileRule(bands=5), "it is a TIFF of uint16: expected uint8; for uint16, train with data.values"),
    ):
        with pytest.raises(ImageFileError, match=message):
            preprocess(content, rule)


@pytest.mark.parametrize("kernel", ["area", "linear", "antialias"])
@pytest.mark.parametrize("to", [20, 90])
def test_each_band_is_resized_as_in_rgb(kernel: str, to: int) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    rule = FileRule.model_validate({"resize": Resize.model_validate({"to": to, "kernel": kernel})})
    resized = apply_rule(rgb, rule)
    five = apply_rule(rgb[..., [0, 1, 2, 1, 0]], rule)
    assert (
        np.abs(five.astype(int) - resized[..., [0, 1, 2, 1, 0]]).max() <= 1
    )  # a fast path of OpenCV for three rounds otherwise
    assert apply_rule(rgb[..., :1], rule).shape == (*resized.shape[:2], 1)


def test_what_is_shown_are_the_first_three_bands() -> None:
    pixels = np.arange(2 * 3 * 5, dtype=np.uint8).reshape(2, 3, 5)
    assert np.array_equal(displayed(pixels), pixels[..., :3])
    assert np.array_equal(displayed(pixels[..., :1]), pixels[..., [0, 0, 0]])
    assert np.array_equal(by_band(lambda part: cv2.flip(part, 1), pixels), pixels[:, ::-1])
