"""Masks as peers read them."""

import io
import tracemalloc

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from pycocotools import mask as coco

from ddcat.classes import CITYSCAPES, Classes, colourise
from ddcat_serve.http.encoding import encode_confidence, encode_labels, encode_mask, encode_overlay, encode_rle

LABELS = arrays(np.uint8, st.tuples(st.integers(1, 30), st.integers(1, 30)), elements=st.integers(0, 18))


@settings(max_examples=30, deadline=None)
@given(LABELS)
def test_a_mask_s_indices_are_the_labels(labels: np.ndarray) -> None:
    image = Image.open(io.BytesIO(encode_mask(labels, CITYSCAPES)))
    assert image.mode == "P"
    np.testing.assert_array_equal(np.asarray(image), labels)
    np.testing.assert_array_equal(np.asarray(image.convert("RGB")), np.array(CITYSCAPES.palette, np.uint8)[labels])


@settings(max_examples=30, deadline=None)
@given(LABELS)
def test_labels_are_grey_values_that_opencv_reads(labels: np.ndarray) -> None:
    content = np.frombuffer(encode_labels(labels), np.uint8)
    for flag in (cv2.IMREAD_UNCHANGED, cv2.IMREAD_GRAYSCALE):
        np.testing.assert_array_equal(cv2.imdecode(content, flag), labels)


def test_a_mask_of_few_classes_has_whole_bytes() -> None:
    content = encode_mask(np.array([[0, 1], [1, 0]], np.uint8), Classes(("a", "b"), ((0, 0, 0), (9, 9, 9))))
    assert content[24] == 8


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of its decoder, with numpy 2
@settings(max_examples=30, deadline=None)
@given(LABELS)
def test_run_lengths_are_what_coco_reads(labels: np.ndarray) -> None:
    found = encode_rle(labels, CITYSCAPES)
    assert found["size"] == list(labels.shape)
    again = np.full(labels.shape, 255, np.uint8)
    for entry in found["classes"]:
        mask = coco.decode(entry["rle"]).astype(bool)
        assert (again[mask] == 255).all()
        again[mask] = entry["id"]
        assert entry["area"] == mask.sum() == coco.area(entry["rle"])
        assert entry["name"] == CITYSCAPES.names[entry["id"]]
    np.testing.assert_array_equal(again, labels)


def test_an_overlay_is_half_image_half_colours() -> None:
    random = np.random.default_rng(0)
    labels, image = random.integers(0, 19, (5, 7)).astype(np.uint8), random.integers(0, 256, (5, 7, 3)).astype(np.uint8)
    found = np.asarray(Image.open(io.BytesIO(encode_overlay(labels, image, CITYSCAPES))))
    mean = (image.astype(float) + colourise(labels, CITYSCAPES)) / 2
    assert np.abs(found - mean).max() <= 0.5


def test_an_overlay_takes_little_memory() -> None:
    labels, image = np.zeros((500, 600), np.uint8), np.zeros((500, 600, 3), np.uint8)
    tracemalloc.start()
    try:
        encode_overlay(labels, image, CITYSCAPES)
        assert tracemalloc.get_traced_memory()[1] < 20 * labels.size  # bytes
    finally:
        tracemalloc.stop()


def test_confidence_is_grey() -> None:
    values = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)
    image = Image.open(io.BytesIO(encode_confidence(values)))
    assert image.mode == "L"
    assert np.asarray(image) / 255 == pytest.approx(values, abs=0.002)
