"""Statistics of answers, against loops over pixels and the definitions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ddcat.engines import Outputs
from ddcat.engines.answer_statistics import describe, psi, statistics_of

LABELS = arrays(np.uint8, st.tuples(st.integers(1, 70), st.integers(1, 70)), elements=st.integers(0, 3))
COUNTS = arrays(np.int64, 5, elements=st.integers(0, 1000)).filter(lambda counts: counts.sum() > 0)


@settings(max_examples=40, deadline=None)
@given(LABELS)
def test_areas_and_boundaries_are_those_counted_pixel_by_pixel(labels: np.ndarray) -> None:
    found = describe(labels, 4)
    height, width = labels.shape
    assert found.classes.tolist() == [int((labels == label).sum()) for label in range(4)]
    edges = [
        [
            (x + 1 < width and labels[y, x] != labels[y, x + 1]) or (y + 1 < height and labels[y, x] != labels[y + 1, x])
            for x in range(width)
        ]
        for y in range(height)
    ]
    assert found.density == pytest.approx(np.mean(edges))
    assert found.boundaries.sum() == max(1, height // 32) * max(1, width // 32)
    if height < 64 and width < 64:  # one tile
        part = np.mean([row[: min(32, width)] for row in edges[: min(32, height)]])
        assert (found.boundaries[0] == 1) == (part == 0)
    assert found.confidence is None


def test_one_label_has_no_boundary() -> None:
    found = describe(np.full((64, 96), 2, np.uint8), 4)
    assert found.boundaries.tolist() == [6, 0, 0, 0, 0, 0, 0]
    assert found.density == 0


def test_labels_that_no_class_has_are_left_out() -> None:
    assert describe(np.array([[0, 9], [255, 1]], np.uint8), 2).classes.tolist() == [1, 1]


def test_confidence_is_the_softmax_of_the_logits_or_what_the_engine_says() -> None:
    logits = np.random.default_rng(0).normal(0, 300, (2, 4, 5, 6)).astype(np.float32)  # exp of such would overflow
    exact = np.exp(logits.astype(np.longdouble) - logits.max(1, keepdims=True))
    top = (exact / exact.sum(1, keepdims=True)).max(1).astype(np.float64)
    labels = np.zeros((2, 10, 12), np.uint8)
    for outputs in (Outputs(labels, logits=logits), Outputs(labels, confidence=top.astype(np.float32))):
        for found, expected in zip(statistics_of(outputs, 4), top, strict=True):
            assert found.mean_confidence == pytest.approx(expected.mean(), rel=1e-5)
            assert found.confidence is not None
            assert found.confidence.sum() == 30
            assert abs(found.confidence - np.histogram(expected, 10, (0, 1))[0]).sum() <= 2  # one at an end of a bin
    odd = np.array([[np.nan, -1.0], [2.0, 1.0]], np.float32)
    assert describe(labels[0], 4, odd).confidence.tolist() == [2, 0, 0, 0, 0, 0, 0, 0, 0, 2]  # type: ignore[union-attr]


@given(COUNTS, COUNTS, st.integers(1, 9))
def test_psi_is_a_distance_of_shares(first: np.ndarray, second: np.ndarray, factor: int) -> None:
    assert psi(first, first) == 0
    assert psi(first, second) == pytest.approx(psi(second, first))
    assert psi(first, second) >= 0
    assert psi(first * factor, second) == pytest.approx(psi(first, second))


def test_psi_of_an_example_by_hand() -> None:
    assert psi([1, 1], [9, 1]) == pytest.approx(0.4 * np.log(1.8) - 0.4 * np.log(0.2))
    assert 8 < psi([1, 0], [0, 1]) < 20  # far, and finite
