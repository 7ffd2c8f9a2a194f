"""What a call may be given, on engines whose needs are known."""

import contextlib
import mmap
from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import pytest

from ddcat.engines import Engine
from ddcat.manifest import DimRange, InputShapes
from ddcat_serve.inference.capacity import Trial, most_pixels, try_sizes
from ddcat_serve.inference.memory import Cost


def shapes(*ranges: tuple[int, int | None], **sizes: Any) -> InputShapes:
    """Shapes by the ends of batch, height and width."""
    batch, height, width = (DimRange(minimum=first, maximum=last) for first, last in ranges)
    return InputShapes(batch=batch, height=height, width=width, **sizes)


class Needy:
    """An engine that takes memory by the pixel, and keeps it until it rests."""

    def __init__(self) -> None:
        self.kept: Any = None
        self.seen: list[tuple[int, ...]] = []

    def infer(self, images: np.ndarray) -> None:
        self.seen.append(images.shape[:3])
        self.kept = np.frombuffer(mmap.mmap(-1, 100 * images.size // 3), np.uint8)  # malloc might have some left
        self.kept[:] = 1

    def rest(self) -> None:
        self.kept = None


@pytest.mark.parametrize(("grows", "pixels"), [(1, 10_000), (2, 3162)])
def test_what_is_not_tried_is_computed_from_how_memory_grew(grows: int, pixels: int) -> None:
    trials = [Trial(side * side, 0.1, side ** (2 * grows)) for side in (10, 20, 40)]
    last = trials[-1]
    found = most_pixels(trials, 1.1 * last.bytes * (pixels / last.pixels) ** grows)
    assert found == pytest.approx(pixels, rel=1e-3)


def test_something_may_always_be_asked_for() -> None:
    assert most_pixels([Trial(64, 0.1, 10**6), Trial(256, 0.1, 10**7)], -1) == 64


def test_memory_that_is_not_the_hosts_is_no_bound() -> None:
    assert most_pixels([Trial(64, 0.1, 0)], 1) > 2**40


@pytest.mark.parametrize(
    ("taken", "sizes"),
    [
        (shapes((1, 4), (8, None), (8, 20)), [(1, 8, 8), (1, 16, 16), (1, 32, 20), (1, 64, 20), (1, 128, 20)]),
        (shapes((2, 2), (8, 9), (8, 9)), [(2, 8, 8), (2, 9, 9)]),
        (shapes((1, 1), (8, 30), (9, 40), sizes=((8, 9), (20, 20), (30, 40))), [(1, 8, 9), (1, 30, 40)]),
    ],
)
def test_the_sizes_that_are_tried_are_taken_by_the_engine(
    taken: InputShapes, sizes: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ddcat_serve.inference.capacity._MAX_PIXELS", 3000)
    engine = Needy()
    trials = try_sizes(cast(Engine, engine), taken)
    assert list(dict.fromkeys(engine.seen)) == sizes
    assert [trial.pixels for trial in trials] == [int(np.prod(size)) for size in sizes]
    assert engine.kept is None


def test_the_memory_of_a_call_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ddcat_serve.inference.capacity._MAX_PIXELS", 2**18)
    found = try_sizes(cast(Engine, Needy()), shapes((1, 1), (8, 512), (8, 512)))[-1]
    assert 60 < found.bytes / found.pixels < 200


def test_beside_others_each_call_is_a_turn_and_the_worst_memory_of_several_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """What others free meanwhile hides memory of some of the calls."""
    costs = iter([Cost(0.2, 50), Cost(0.1, -30), Cost(0.3, 70)])
    engine, turns = Needy(), list[str]()

    @contextlib.contextmanager
    def turn() -> Iterator[None]:
        turns.append("began")
        yield
        turns.append("ended")

    monkeypatch.setattr("ddcat_serve.inference.capacity.measure_cost", lambda call: (call(), next(costs))[1])
    assert try_sizes(cast(Engine, engine), shapes((1, 1), (8, None), (8, None)), turn=turn) == [Trial(64, 0.1, 70)]
    assert turns == ["began", "ended"] * 4  # the first call prepares
    assert engine.seen == [(1, 8, 8)] * 4
