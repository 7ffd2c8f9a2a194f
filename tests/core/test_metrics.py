"""Counts against sets of pixels, and what is computed from them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ddcat.metrics import confusion_counts, iou, miou, pixel_accuracy

CLASSES = 4
shapes = st.tuples(st.integers(1, 6), st.integers(1, 6))
pairs = shapes.flatmap(
    lambda shape: st.tuples(
        arrays(np.uint8, shape, elements=st.sampled_from([0, 1, 2, 3, 255])),
        arrays(np.uint8, shape, elements=st.integers(0, CLASSES - 1)),
    )
)


@given(pairs)
def test_counts_are_those_of_sets_of_pixels(pair: tuple[np.ndarray, np.ndarray]) -> None:
    labels, predictions = pair
    counts = confusion_counts(labels, predictions, CLASSES)
    scored = {tuple(place) for place in np.argwhere(labels != 255)}
    ious = []
    for k in range(CLASSES):
        truth = {p for p in scored if labels[p] == k}
        found = {p for p in scored if predictions[p] == k}
        assert counts[k].tolist() == [len(truth & found), len(found - truth), len(truth - found)]
        if truth | found:
            ious.append(len(truth & found) / len(truth | found))
    assert miou(counts) == pytest.approx(np.mean(ious)) if ious else np.isnan(miou(counts))


@given(pairs)
def test_an_ignored_pixel_counts_nowhere(pair: tuple[np.ndarray, np.ndarray]) -> None:
    labels, predictions = pair
    other = np.where(labels == 255, (predictions + 1) % CLASSES, predictions)
    assert (confusion_counts(labels, predictions, CLASSES) == confusion_counts(labels, other, CLASSES)).all()


def test_known_figures() -> None:
    counts = np.array([[2, 1, 1], [3, 1, 1], [0, 0, 0]])
    assert iou(counts)[:2].tolist() == [0.5, 0.6]
    assert np.isnan(iou(counts)[2])
    assert miou(counts) == pytest.approx(0.55)
    assert pixel_accuracy(counts) == pytest.approx(5 / 7)


def test_nothing_scored_is_not_a_number() -> None:
    counts = confusion_counts(np.full((2, 2), 255), np.zeros((2, 2), np.int64), CLASSES)
    assert np.isnan(miou(counts))
    assert np.isnan(pixel_accuracy(counts))


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match="differ in shape"):
        confusion_counts(np.zeros((2, 2), int), np.zeros((2, 3), int), CLASSES)
