"""Groups of images are worked on in several threads."""

import threading
from collections.abc import Iterator

import pytest

from ddcat.predict.workers import for_each


def test_every_group_is_worked_on_once() -> None:
    worked, done = [], []
    groups = [list(range(at, at + 3)) for at in range(0, 60, 3)]
    for_each(iter(groups), worked.append, threads=3, done=done.append)
    assert sorted(worked) == groups
    assert sum(done) == 60


def test_groups_are_worked_on_at_the_same_time() -> None:
    together = threading.Barrier(3)
    for_each([[0], [1], [2]], lambda group: together.wait(10) and None, threads=3)  # it breaks where one waits for another


def test_few_groups_are_in_memory() -> None:
    alive, most, lock = 0, 0, threading.Lock()

    def groups() -> Iterator[list[int]]:
        nonlocal alive, most
        for unit in range(200):
            with lock:
                alive += 1
                most = max(most, alive)
            yield [unit]

    def work(group: list[int]) -> None:
        nonlocal alive
        with lock:
            alive -= 1

    for_each(groups(), work, threads=4)
    assert alive == 0
    assert most <= 5  # one for each thread, and the one that is made


@pytest.mark.parametrize("where", ["groups", "work", "done"])
def test_whatever_fails_ends_the_run_and_no_thread_is_left(where: str) -> None:
    begun = []

    def fail(place: str, value: int) -> None:
        if place == where and value == 7:
            raise ZeroDivisionError(place)

    def groups() -> Iterator[list[int]]:
        for unit in range(1000):
            begun.append(unit)
            fail("groups", unit)
            yield [unit] * unit

    before = threading.active_count()
    with pytest.raises(ZeroDivisionError, match=where):
        for_each(groups(), lambda group: fail("work", len(group)), threads=2, done=lambda count: fail("done", count))
    assert threading.active_count() == before
    assert len(begun) < 1000  # the other thread stopped, too
