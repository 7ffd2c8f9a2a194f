"""Run lengths and PNGs, against the programs that read them."""

import io

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image
from pycocotools import mask as coco

from ddcat.classes import VOC, colourise
from ddcat.predict.png import mask_png, mask_png_parts
from ddcat.predict.run_lengths import encode_classes, run_lengths

LABELS = arrays.arrays(np.uint8, st.tuples(st.integers(1, 40), st.integers(1, 40)), elements=st.integers(0, 3))


@settings(deadline=None)
@given(LABELS)
def test_pycocotools_reads_and_writes_the_same_run_lengths(labels: np.ndarray) -> None:
    found = run_lengths(labels)
    assert list(found) == np.unique(labels).tolist()
    for label, lengths in found.items():
        assert np.array_equal(coco.decode(lengths), labels == label)
        assert coco.encode(np.asfortranarray(labels == label, np.uint8))["counts"].decode() == lengths["counts"]


@settings(deadline=None)
@given(LABELS)
def test_pycocotools_measures_the_same_areas_and_boxes(labels: np.ndarray) -> None:
    for label, found in encode_classes(labels).items():
        encoded = coco.encode(np.asfortranarray(labels == label, np.uint8))
        assert found.area == coco.area(encoded)
        assert found.box == coco.toBbox(encoded).tolist()


def test_long_runs_take_several_characters() -> None:
    labels = np.zeros((700, 900), np.uint8)
    labels[3:690, 5:880] = 1
    labels[40:50, 40:50] = 0
    for label, lengths in run_lengths(labels).items():
        assert np.array_equal(coco.decode(lengths), labels == label)


@settings(deadline=None)
@given(LABELS, st.integers(1, 7))
def test_a_png_is_the_same_in_bands_and_pillow_reads_its_labels(labels: np.ndarray, rows: int) -> None:
    bands = [labels[at : at + rows] for at in range(0, len(labels), rows)]
    for content in (mask_png(labels, VOC), b"".join(mask_png_parts(bands, *labels.shape, VOC))):
        with Image.open(io.BytesIO(content)) as image:
            assert image.mode == "P"
            assert np.array_equal(np.asarray(image), labels)
            assert np.array_equal(np.asarray(image.convert("RGB")), colourise(labels, VOC))
