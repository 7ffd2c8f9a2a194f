"""Reading, computing and writing at the same time."""

import threading
from collections.abc import Iterator

import pytest

from ddcat.predict.pipeline import pipelined


def test_every_unit_is_loaded_computed_in_turn_and_stored() -> None:
    stored, computed, done = {}, [], []

    def compute(loaded: list[int]) -> list[int]:
        computed.extend(loaded)
        return [-number for number in loaded]

    groups = [list(range(at, at + 3)) for at in range(0, 60, 3)]
    pipelined(groups, lambda unit: unit * 10, compute, stored.__setitem__, threads=3, done=done.append)
    assert stored == {unit: -10 * unit for unit in range(60)}
    assert computed == [10 * unit for unit in range(60)]  # in order: the engine's answers depend on its batches
    assert sum(done) == 60


def test_few_units_are_in_memory() -> None:
    alive, most, lock = 0, 0, threading.Lock()

    def groups() -> Iterator[list[int]]:
        for unit in range(200):
            yield [unit]

    def load(unit: int) -> int:
        nonlocal alive, most
        with lock:
            alive += 1
            most = max(most, alive)
        return unit

    def store(unit: int, answer: int) -> None:
        nonlocal alive
        with lock:
            alive -= 1

    pipelined(groups(), load, lambda loaded: loaded, store, threads=2)
    assert alive == 0
    assert most <= 14  # 2 x 2 that wait, 2 x 2 that are written, and those in hand


@pytest.mark.parametrize("where", ["groups", "load", "compute", "store"])
def test_whatever_fails_ends_the_run_and_no_thread_is_left(where: str) -> None:
    def fail(place: str, value: object) -> object:
        if place == where and value == 7:
            raise ZeroDivisionError(place)
        return value

    def groups() -> Iterator[list[int]]:
        for unit in range(1000):
            fail("groups", unit)
            yield [unit]

    before = threading.active_count()
    with pytest.raises(ZeroDivisionError, match=where):
        pipelined(
            groups(), lambda u: fail("load", u), lambda g: [fail("compute", g[0])], lambda u, a: fail("store", u), threads=2
        )
    assert threading.active_count() == before
