"""Calls of engines that answer and of one that is loaded: not at the same time, unless one of them does not end."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager

import pytest

from ddcat_serve.inference import turns
from ddcat_serve.inference.turns import Turns


def test_batches_and_loads_never_overlap_and_batches_may() -> None:
    shared, lock = Turns(), threading.Lock()
    now: dict[str, int] = {"batch": 0, "load": 0}
    most: dict[str, int] = {"batch": 0, "load": 0}
    together = []

    def call(kind: str, turn: Callable[[], AbstractContextManager[None]]) -> None:
        for _ in range(30):
            with turn():
                with lock:
                    now[kind] += 1
                    most[kind] = max(most[kind], now[kind])
                    together.append(now["batch"] > 0 and now["load"] > 0)
                time.sleep(0.001)
                with lock:
                    now[kind] -= 1

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(call, "batch", shared.batch) for _ in range(3)] + [pool.submit(call, "load", shared.load)]:
            done.result()
    assert not any(together)
    assert most == {"batch": most["batch"], "load": 1}
    assert most["batch"] > 1


def test_a_batch_that_waits_comes_before_the_next_call_of_a_load() -> None:
    shared, begun, over = Turns(), 0, threading.Event()

    def load() -> None:
        nonlocal begun
        while not over.is_set():
            with shared.load():
                begun += 1
                time.sleep(0.005)

    with ThreadPoolExecutor(1) as pool:
        loading = pool.submit(load)
        passed = []
        for _ in range(10):
            time.sleep(0.007)
            before = begun
            with shared.batch():
                passed.append(begun - before)
        over.set()
        loading.result()
    assert begun >= 10
    assert max(passed) <= 1  # one may begin between the count and the question


@pytest.mark.parametrize(("hangs", "waits"), [("batch", "load"), ("load", "batch")])
def test_a_call_that_hangs_is_waited_for_once(hangs: str, waits: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shared, inside, go = Turns(), threading.Event(), threading.Event()
    waited: list[float] = []
    wait_for = threading.Condition.wait_for

    def counted(condition: threading.Condition, predicate: Callable[[], bool], timeout: float | None = None) -> bool:
        began = time.monotonic()
        found = wait_for(condition, predicate, timeout)
        if not found:
            waited.append(time.monotonic() - began)
        return found

    def hang() -> None:
        with getattr(shared, hangs)():
            inside.set()
            assert go.wait(30)

    monkeypatch.setattr(turns, "_GAP", 0.05)
    monkeypatch.setattr(turns, "_PATIENCE", 0.05)
    with ThreadPoolExecutor(1) as pool:
        hanging: Future[None] = pool.submit(hang)
        assert inside.wait(30)
        monkeypatch.setattr(threading.Condition, "wait_for", counted)
        for _ in range(5):
            with getattr(shared, waits)():
                pass
        assert len(waited) == (2 if waits == "load" else 1)  # a load waits for a gap, then for the end
        monkeypatch.undo()
        go.set()
        hanging.result()
    with shared.load():  # and all is as before
        assert not shared._batches
