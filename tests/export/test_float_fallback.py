"""Which layers are left in float."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddcat.engines.base import Outputs
from ddcat.manifest_precision import AccuracyDrop, EqualLabels
from ddcat_export.calibration import Sample
from ddcat_export.errors import ExportError
from ddcat_export.float_fallback import Evaluator, fall_back

LAYERS = [f"layer{index}" for index in range(30)]


def drop(clean: float, adversarial: float = 0.0) -> AccuracyDrop:
    return AccuracyDrop(clean=clean, adversarial=adversarial, images=1, attack={})


@given(needed=st.integers(0, 10), adversarial=st.booleans())
def test_the_fewest_are_found_where_more_are_never_worse(needed: int, adversarial: bool) -> None:
    def drop_of(floats: Sequence[str]) -> AccuracyDrop:
        assert list(floats) == LAYERS[: len(floats)]
        points = 1.0 if len(floats) >= needed else 1.1
        return drop(0, points) if adversarial else drop(points, 0)

    floats, found, trials = fall_back(LAYERS, drop_of, max_drop=1.0)
    assert list(floats) == LAYERS[:needed]
    assert max(found.clean, found.adversarial) == 1.0
    assert len({trial.float_layers for trial in trials}) == len(trials) <= 8  # nothing is measured twice


@given(st.lists(st.floats(-1, 3), min_size=11, max_size=11))
def test_what_is_chosen_was_measured_to_hold(drops: list[float]) -> None:
    def drop_of(floats: Sequence[str]) -> AccuracyDrop:
        return drop(drops[len(floats)])

    tried_first = [drops[number] for number in (0, 1, 2, 4, 8, 10)]
    if min(tried_first) > 1:
        with pytest.raises(ExportError, match=f"loses at least {min(tried_first):.2f} points of clean and 0.00 of "):
            fall_back(LAYERS, drop_of, max_drop=1.0)
        return
    floats, found, trials = fall_back(LAYERS, drop_of, max_drop=1.0)
    assert found.clean == drops[len(floats)] <= 1.0
    assert (len(floats), found.clean, 0.0) in trials


class Answers:
    """A graph that gives what it was told."""

    inputs = outputs = ()

    def __init__(self, labels: npt.NDArray[np.uint8]) -> None:
        self.labels, self.closed, self.description = labels, False, {}

    def run(self, images: npt.NDArray[np.uint8]) -> Outputs:
        return Outputs(self.labels if images.any() else 1 - self.labels)  # the black ones are adversarial

    def close(self) -> None:
        self.closed = True


def test_the_form_that_loses_most_counts() -> None:
    labels = np.asarray([[[0, 0], [1, 255]]])
    right = np.asarray([[[0, 0], [1, 0]]], np.uint8)
    half = np.asarray([[[0, 1], [1, 0]]], np.uint8)  # of class 0 one of two pixels, of class 1 one of two
    white, black = (np.full((1, 2, 2, 3), value, np.uint8) for value in (255, 0))
    opened: list[Answers] = []

    def opens(content: bytes) -> Answers:
        opened.append(Answers(half if content == b"half" else right))
        return opened[-1]

    judge = Evaluator(
        [Sample("x", white, labels)], [black], classes=2, attack={"name": "A"}, reference=b"fp32", open_fp32=opens
    )
    found = judge.drop([(b"right", opens), (b"half", opens)])
    # adversarial answers are the reverse: all wrong in fp32, one of three right in the half, so that none loses anything
    assert found == AccuracyDrop(clean=50.0, adversarial=0.0, images=1, attack={"name": "A"})
    assert len(opened) == 3
    assert all(graph.closed for graph in opened)


def test_labels_are_compared_with_those_of_fp32() -> None:
    labels = np.asarray([[[0, 0], [1, 255]]])
    images = [np.full((1, 2, 2, 3), value, np.uint8) for value in (255, 0)]
    answers = {b"fp32": [[0, 0], [1, 1]], b"bf16": [[0, 1], [1, 0]]}

    def opens(content: bytes) -> Answers:
        return Answers(np.asarray([answers[content]], np.uint8))

    judge = Evaluator(
        [Sample("x", images[0], labels)], images[1:], classes=2, attack={"name": "A"}, reference=b"fp32", open_fp32=opens
    )
    drop, equal = judge.compare(b"bf16", opens)
    assert equal == EqualLabels(clean=0.5, adversarial=0.5)  # the ignored pixel counts: both graphs label it
    assert drop == judge.drop([(b"bf16", opens)])
    assert drop.clean == 50.0
    assert judge.compare(b"fp32", opens)[1] == EqualLabels(clean=1, adversarial=1)


def test_a_limit_that_cannot_hold_is_refused() -> None:
    with pytest.raises(
        ExportError, match=r"int8 loses at least 2\.50 points of clean and 0\.00 .*, with 0 of 30 layers in float"
    ):
        fall_back(LAYERS, lambda floats: drop(2.5 + len(floats)), max_drop=1.0)
