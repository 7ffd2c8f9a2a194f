"""Conformal risk control: the promised risk holds by simulation, and the threshold is the smallest with its bound."""

import numpy as np
import pytest

from ddcat.confidence import abstained
from ddcat_export.abstention import LEVELS, choose, count_levels
from ddcat_export.errors import ExportError

PIXELS = 400


def drawn(random: np.random.Generator, units: int) -> tuple[np.ndarray, np.ndarray]:
    """Counts of images whose pixels are all alike in how hard they are: each image is easy or hard as a whole."""
    easy = random.beta(2, 1, (units, 1))
    confidence = np.clip(easy + random.normal(0, 0.15, (units, PIXELS)), 0, 1).astype(np.float32)
    right = random.random((units, PIXELS)) < 0.5 + 0.5 * easy
    found = [
        count_levels(np.ones(PIXELS, np.uint8), good.astype(np.uint8), sure)
        for good, sure in zip(right, confidence, strict=True)
    ]
    return np.stack([one for one, _ in found]), np.stack([other for _, other in found])


def losses(wrong: np.ndarray, threshold: float) -> np.ndarray:
    """Share of pixels that are answered and wrong, of each unit."""
    return wrong[:, round(threshold * LEVELS) + 1 :].sum(1) / PIXELS


@pytest.mark.parametrize(("units", "risk"), [(19, 0.05), (60, 0.05), (30, 0.1)])
def test_the_risk_of_new_images_is_at_most_what_is_promised(units: int, risk: float) -> None:
    random = np.random.default_rng(7)
    right, wrong = drawn(random, 3000)  # all there is: draws and new images come of it
    mean = []
    for _ in range(400):
        chosen = random.integers(0, len(right), units)
        try:
            threshold = choose(right[chosen], wrong[chosen], risk).threshold
        except ExportError:  # nothing is answered, nothing wrong
            threshold = 1.0
        mean.append(losses(wrong, threshold).mean())
    assert np.mean(mean) <= risk + 2 * np.std(mean) / np.sqrt(len(mean))
    if units == 60:
        assert np.mean(mean) > 0.3 * risk  # and it is no empty promise


def test_the_threshold_is_the_smallest_that_keeps_the_bound_and_its_figures_are_those_of_the_split() -> None:
    right, wrong = drawn(np.random.default_rng(0), 50)
    rule = choose(right, wrong, 0.08, images=99)
    level = round(rule.threshold * LEVELS)
    assert 0 < level < LEVELS

    def bound(level: int) -> float:
        return float((50 * losses(wrong, level / LEVELS).mean() + 1) / 51)

    assert bound(level) <= 0.08 < bound(level - 1)
    assert all(bound(place) >= bound(place + 1) for place in range(LEVELS))
    assert rule.found == pytest.approx(losses(wrong, rule.threshold).mean())
    answered = right[:, level + 1 :].sum() + wrong[:, level + 1 :].sum()
    assert rule.error == pytest.approx(wrong[:, level + 1 :].sum() / answered)
    assert rule.abstained == pytest.approx(1 - answered / (50 * PIXELS))
    assert (rule.units, rule.images, rule.kind) == (50, 99, "images")
    assert choose(right, wrong, 0.9).threshold == 0


def test_a_pixel_is_counted_as_it_is_answered() -> None:
    random = np.random.default_rng(1)
    thresholds = (np.arange(LEVELS + 1) / LEVELS).astype(np.float32)
    confidence = np.concatenate([thresholds, np.nextafter(thresholds, np.float32(2)), [np.nan], random.random(500)])
    confidence = np.minimum(confidence, 1).astype(np.float32)
    labels = random.integers(0, 3, confidence.shape).astype(np.uint8)
    labels[random.random(labels.shape) < 0.1] = 255
    answer = np.zeros_like(labels)
    right, wrong = count_levels(labels, answer, confidence)
    for level in (0, 1, 3, 337, 700, 999, LEVELS):
        given = abstained(answer, confidence, level / LEVELS) == 0
        assert right[level + 1 :].sum() == (given & (labels == 0)).sum()
        assert wrong[level + 1 :].sum() == (given & (labels != 0) & (labels != 255)).sum()


def test_what_cannot_be_promised_is_refused() -> None:
    right, wrong = drawn(np.random.default_rng(0), 18)
    with pytest.raises(ExportError, match=r"--risk 0\.05 needs at least 19 clips, and the split has 18: use a larger"):
        choose(right, wrong, 0.05, kind="clips")
    sure = np.zeros((30, LEVELS + 1), np.int64)
    sure[:, -1] = 9  # all wrong, and of full confidence
    with pytest.raises(ExportError, match=r"--risk 0\.5: no pixel would be answered"):
        choose(np.zeros_like(sure), sure, 0.5)
