"""Calibration error: the definition, transcribed, and what must hold of it."""

import numpy as np
import pytest

from ddcat.reliability import BINS, calibration_error, count_reliability


def transcribed(labels: np.ndarray, predictions: np.ndarray, confidence: np.ndarray, bins: int) -> float:
    """Equation 3 of Guo et al. (2017), bin by bin: bin m holds confidences in ((m - 1) / M, m / M]."""
    known = labels != 255
    right, sure = (labels == predictions)[known], confidence[known]
    error = 0.0
    for place in range(1, bins + 1):
        within = (sure > (place - 1) / bins) & (sure <= place / bins)
        if within.any():
            error += within.sum() / known.sum() * abs(right[within].mean() - sure[within].mean())
    return error


def drawn(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    predictions = random.integers(0, 4, (30, 40)).astype(np.uint8)
    confidence = random.uniform(0.01, 1, (30, 40))
    labels = np.where(random.random((30, 40)) < confidence**2, predictions, (predictions + 1) % 4).astype(np.uint8)
    labels[random.random((30, 40)) < 0.2] = 255
    return labels, predictions, confidence


@pytest.mark.parametrize("seed", range(5))
def test_it_is_the_definition_and_images_add_up(seed: int) -> None:
    labels, predictions, confidence = drawn(seed)
    counts = count_reliability(labels, predictions, confidence)
    assert calibration_error(counts) == pytest.approx(transcribed(labels, predictions, confidence, BINS), abs=1e-12)
    halves = [
        count_reliability(*(part[rows] for part in (labels, predictions, confidence))) for rows in (slice(9), slice(9, 30))
    ]
    np.testing.assert_allclose(sum(halves), counts)


def test_labels_as_right_as_they_are_sure_have_none() -> None:
    labels = np.zeros(1000, np.uint8)
    predictions = (np.arange(1000) >= 700).astype(np.uint8)  # 70 % are right
    counts = count_reliability(labels, predictions, np.full(1000, 0.7))
    assert calibration_error(counts) == pytest.approx(0, abs=1e-9)
    assert calibration_error(count_reliability(labels, predictions, np.full(1000, 1.0))) == pytest.approx(0.3)
    assert np.isnan(calibration_error(count_reliability(np.full(9, 255), np.zeros(9, int), np.ones(9))))


def test_confidence_at_the_ends_and_none_at_all_are_in_a_bin() -> None:
    counts = count_reliability(np.zeros(4, int), np.zeros(4, int), np.array([0.0, 1.0, np.nan, 1 + 1e-7]))
    assert counts[:, 0].tolist() == [2, *[0] * (BINS - 2), 2]
