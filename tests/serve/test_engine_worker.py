"""The engine's thread: who breaks a batch breaks nothing else, who goes is forgotten, and an engine that hangs is replaced."""

import contextlib
import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any

import numpy as np
import pytest

from ddcat.engines import Outputs
from ddcat.engines.errors import EngineError
from ddcat.errors import BundleError
from ddcat_serve.inference.admission_queue import AdmissionQueue, Overloaded, TooLarge
from ddcat_serve.inference.engine_worker import EngineWorker
from ddcat_serve.inference.jobs import HungError, Job, LateError, StoppedError
from ddcat_serve.observe.usage import Batch
from tests.serve.processes import wait_for

BAD = 13  # an image whose first value is this breaks the engine
SIZE = (4, 5)


class Toy:
    """Labels an image by its own values; waits for `go`; breaks on some images."""

    inputs = outputs = ()
    description = {"threads": 1}  # noqa: RUF012

    def __init__(self) -> None:
        self.go, self.entered, self.closed = threading.Event(), threading.Event(), threading.Event()
        self.go.set()
        self.calls: list[list[int]] = []
        self.rests = 0

    def infer(self, images: np.ndarray) -> Outputs:
        self.entered.set()
        assert self.go.wait(20)
        values = images[:, 0, 0, 0].tolist()
        self.calls.append(values)
        if BAD in values:
            raise EngineError("the runtime broke")
        return Outputs(labels=images[..., 0].copy(), confidence=images[..., 0] / np.float32(255))

    def rest(self) -> None:
        self.rests += 1

    def close(self) -> None:
        self.closed.set()


def image(value: int, count: int = 1, size: tuple[int, int] = SIZE) -> np.ndarray:
    return np.full((count, *size, 3), value, np.uint8)


@pytest.fixture
def work() -> Iterator[Callable[..., tuple[EngineWorker, list[Toy], list[Batch]]]]:
    made: list[tuple[EngineWorker, list[Toy]]] = []

    def make(
        *, reopen: Callable[[], Toy] = Toy, speed: float | None = None, engine_timeout: float = 20.0, **options: Any
    ) -> tuple[EngineWorker, list[Toy], list[Batch]]:
        engines, batches = [Toy()], list[Batch]()

        def again() -> Toy:
            engines.append(reopen())
            return engines[-1]

        queue = AdmissionQueue(max_pixels=10_000, batch_pixels=1000, batch_images=8, pixels_per_second=speed)
        worker = EngineWorker(
            "toy", engines[0], reopen=again, queue=queue, engine_timeout=engine_timeout, observe=batches.append, **options  # type: ignore[arg-type]
        )  # fmt: skip
        made.append((worker, engines))
        return worker, engines, batches

    yield make
    for worker, engines in made:
        for engine in engines:
            engine.go.set()
        worker.close(5)


def hold(worker: EngineWorker, toy: Toy, value: int = 1) -> Job:
    """Keep the engine busy with an image until it is let go."""
    toy.go.clear()
    toy.entered.clear()
    job = worker.submit(image(value), 20)
    assert toy.entered.wait(5)
    return job


def hold_and_lose(worker: EngineWorker, toy: Toy) -> None:
    with pytest.raises(HungError):
        hold(worker, toy).result.result(5)


def test_requests_of_a_batch_get_their_own_outputs(work: Callable) -> None:
    worker, (toy,), batches = work()
    first = hold(worker, toy)
    jobs = [worker.submit(image(value, count), 20) for value, count in ((2, 1), (3, 2), (4, 1))]
    other = worker.submit(image(9, size=(6, 5)), 20)
    toy.go.set()
    for value, count, job in zip((1, 2, 3, 4), (1, 1, 2, 1), (first, *jobs), strict=True):
        outputs = job.result.result(5)
        np.testing.assert_array_equal(outputs.labels, image(value, count)[..., 0])
        np.testing.assert_allclose(outputs.confidence, value / 255)
        assert outputs.logits is None
    assert other.result.result(5).labels.shape == (1, 6, 5)
    assert toy.calls == [[1], [2, 3, 3, 4], [9]]
    worker.close(5)
    assert [(batch.requests, batch.images, batch.pixels, batch.failed) for batch in batches] == [
        (1, 1, 20, 0), (3, 4, 80, 0), (1, 1, 30, 0),
    ]  # fmt: skip


def test_one_bad_among_seven_good_fails_alone(work: Callable) -> None:
    worker, (toy,), batches = work()
    first = hold(worker, toy)
    values = [2, 3, 4, BAD, 5, 6, 7, 8]
    jobs = [worker.submit(image(value), 20) for value in values]
    toy.go.set()
    first.result.result(5)
    for value, job in zip(values, jobs, strict=True):
        if value == BAD:
            with pytest.raises(EngineError, match="the runtime broke"):
                job.result.result(5)
        else:
            assert job.result.result(5).labels[0, 0, 0] == value
    assert toy.calls == [[1], values, *[[value] for value in values]]
    worker.close(5)
    assert batches[-1].failed == 1


def test_who_goes_is_not_computed(work: Callable) -> None:
    worker, (toy,), _ = work()
    first = hold(worker, toy)
    stays, goes = worker.submit(image(2), 20), worker.submit(image(3), 20)
    worker.cancel(goes)
    worker.cancel(first)  # is being computed: for nobody
    toy.go.set()
    assert stays.result.result(5).labels[0, 0, 0] == 2
    assert toy.calls == [[1], [2]]
    assert first.result.cancelled()
    assert goes.result.cancelled()


def test_an_engine_that_hangs_is_replaced(work: Callable) -> None:
    worker, engines, _ = work(engine_timeout=0.2)
    stuck = hold(worker, engines[0])
    waits = worker.submit(image(2), 20)
    with pytest.raises(HungError):
        stuck.result.result(5)
    with pytest.raises(StoppedError):
        waits.result.result(5)
    wait_for(lambda: worker.state == "ready")
    assert len(engines) == 2
    assert worker.submit(image(3), 20).result.result(5).labels[0, 0, 0] == 3
    assert engines[0].calls == []
    engines[0].go.set()  # the old one comes back after all: nobody waits for it
    assert engines[0].closed.wait(5)
    assert worker.engine is engines[1]


@pytest.mark.parametrize("error", [EngineError("the runtime refuses"), BundleError("the file is gone"), OSError(5, "a disk")])
def test_an_engine_that_cannot_be_opened_again_is_broken_and_not_waited_for(work: Callable, error: Exception) -> None:
    def refuse() -> Toy:
        raise error

    worker, (toy,), _ = work(engine_timeout=0.1, reopen=refuse)
    hold_and_lose(worker, toy)
    wait_for(lambda: worker.state == "broken")
    with pytest.raises(StoppedError, match="is broken"):
        worker.submit(image(2), 20)
    began = time.monotonic()
    worker.close(20)
    assert time.monotonic() - began < 10
    assert not toy.closed.is_set()


def test_engines_that_were_given_up_are_counted_for_good(work: Callable) -> None:
    """Each may compute on beside the next one: an answer between two hangs gives no memory back."""
    worker, engines, _ = work(engine_timeout=0.2)
    for hangs in range(1, 5):
        worker.submit(image(2), 20).result.result(5)
        hold_and_lose(worker, engines[-1])
        wait_for(lambda: worker.state != "restarting")
        assert worker.state == ("ready" if hangs < 4 else "broken")
    assert len(engines) == 4


def test_an_engine_that_hangs_when_it_is_opened_again_is_given_up_too(work: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ddcat_serve.inference.engine_worker._OPEN_TIMEOUT", 0.1)
    go = threading.Event()

    def hanging() -> Toy:
        go.wait(20)
        return Toy()

    worker, (toy, *_), _ = work(engine_timeout=0.2, reopen=hanging)
    hold_and_lose(worker, toy)
    wait_for(lambda: worker.state == "broken")
    go.set()
    worker.close(1)


def test_the_clock_begins_anew_with_each_request_that_is_tried_alone(work: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight of 0.1 s each are no hang where 0.5 s are one."""
    worker, (toy,), _ = work(engine_timeout=0.5)
    first = hold(worker, toy)
    values = [2, 3, 4, BAD, 5, 6, 7, 8]
    jobs = [worker.submit(image(value), 20) for value in values]
    infer = toy.infer
    monkeypatch.setattr(toy, "infer", lambda images: (time.sleep(0.1), infer(images))[1])
    toy.go.set()
    first.result.result(5)
    for value, job in zip(values, jobs, strict=True):
        if value != BAD:
            assert job.result.result(5).labels[0, 0, 0] == value
    assert worker.engine is toy
    assert worker.state == "ready"


def test_who_was_answered_before_another_one_hangs_has_the_answer(work: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    worker, (toy, *_), _ = work(engine_timeout=0.3)
    first = hold(worker, toy)
    jobs = [worker.submit(image(value), 20) for value in (2, BAD, 4)]
    infer, stuck = toy.infer, threading.Event()

    def sticks_at_four(images: np.ndarray) -> Outputs:
        if images[:, 0, 0, 0].tolist() == [4]:
            stuck.wait(20)
        return infer(images)

    monkeypatch.setattr(toy, "infer", sticks_at_four)
    toy.go.set()
    first.result.result(5)
    assert jobs[0].result.result(5).labels[0, 0, 0] == 2
    with pytest.raises(EngineError, match="the runtime broke"):
        jobs[1].result.result(5)
    with pytest.raises(HungError):
        jobs[2].result.result(5)
    stuck.set()


def test_a_process_that_was_stopped_does_not_give_its_engine_up(work: Callable) -> None:
    now = 0.0
    worker, (toy,), _ = work(engine_timeout=0.4, clock=lambda: now)
    job = hold(worker, toy)
    now = 1000.0  # the clock went on, and neither the watchdog nor the engine
    time.sleep(0.25)
    now = 1000.1
    time.sleep(0.25)
    assert worker.engine is toy
    toy.go.set()
    assert job.result.result(5).labels[0, 0, 0] == 1


def test_an_idle_engine_gives_memory_back(work: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ddcat_serve.inference.engine_worker._IDLE_AFTER", 0.05)
    worker, (toy,), _ = work()
    time.sleep(0.2)
    assert toy.rests == 0  # there is nothing to give back
    worker.submit(image(1), 20).result.result(5)
    wait_for(lambda: toy.rests == 1)
    time.sleep(0.2)
    assert toy.rests == 1
    assert worker.submit(image(2), 20).result.result(5).labels[0, 0, 0] == 2


@pytest.mark.parametrize("breaks", [False, True])
def test_an_idle_engine_is_measured_anew_where_its_speed_was_the_reason_of_a_refusal(
    work: Callable, monkeypatch: pytest.MonkeyPatch, breaks: bool
) -> None:
    monkeypatch.setattr("ddcat_serve.inference.engine_worker._IDLE_AFTER", 0.05)
    asked: list[object] = []

    def measure(engine: object) -> float:
        asked.append(engine)
        if breaks:
            raise EngineError("the runtime broke")
        return 1e6

    worker, (toy,), _ = work(measure=measure, speed=1.0)  # pixels per second, as on a machine that is busy
    time.sleep(0.2)
    assert asked == []
    with pytest.raises(TooLarge):
        worker.submit(image(1), 10)
    wait_for(lambda: toy.rests == 1)
    assert (asked, worker._queue.refused_for_speed) == ([toy], False)
    if not breaks:
        assert worker.submit(image(2), 10).result.result(5).labels[0, 0, 0] == 2


def test_an_engine_gives_memory_back_before_it_keeps_that_of_too_many_sizes(work: Callable) -> None:
    worker, (toy,), _ = work(kept_pixels=100)
    for size, rests in (((5, 5), 0), ((5, 5), 0), ((5, 10), 0), ((5, 6), 1), ((5, 5), 1), ((20, 20), 2)):
        worker.submit(image(1, size=size), 20).result.result(5)
        wait_for(lambda rests=rests: toy.rests == rests)  # type: ignore[misc]


@pytest.mark.parametrize("end", ["answered", "failed", "late", "cancelled", "cancelled at work", "hung", "stopped"])
def test_no_request_that_has_ended_keeps_its_images(work: Callable, end: str) -> None:
    gc.collect()
    gc.disable()
    try:
        worker, engines, _ = work(engine_timeout=0.3 if end == "hung" else 20.0)
        toy = engines[0]
        held = None if end in ("answered", "failed", "cancelled at work", "hung") else hold(worker, toy)
        images = image(BAD if end == "failed" else 2)
        known = weakref.ref(images)
        if end in ("cancelled at work", "hung"):
            toy.go.clear()
        job = worker.submit(images, 0.05 if end == "late" else 20)
        if end.startswith("cancelled"):
            assert end == "cancelled" or toy.entered.wait(5)
            worker.cancel(job)
        if end == "late":
            time.sleep(0.1)
        if end == "stopped":
            worker.close(0.05)
        if end == "hung":
            with contextlib.suppress(HungError):
                job.result.result(5)
        toy.go.set()
        if not end.startswith("cancelled"):
            futures.wait([job.result], 5)
        del images, job, held
        wait_for(lambda: known() is None)
    finally:
        gc.enable()


def test_several_requests_have_their_places_together_or_not_at_all(work: Callable) -> None:
    worker, (toy,), _ = work()
    hold(worker, toy)
    jobs = worker.admit([(1, (50, 50)), (1, (60, 60))], 20)
    with pytest.raises(Overloaded):
        worker.admit([(1, (50, 50)), (1, (60, 60))], 20)
    assert worker.waiting_pixels == 6100
    worker.start(jobs[1], image(2, size=(60, 60)))
    toy.go.set()
    assert jobs[1].result.result(5).labels.shape == (1, 60, 60)
    worker.start(jobs[0], image(3, size=(50, 50)))
    assert jobs[0].result.result(5).labels.shape == (1, 50, 50)
    with pytest.raises(LateError):
        worker.admit([(1, SIZE)], 0.0)


def test_a_place_whose_request_failed_meanwhile_takes_no_images(work: Callable) -> None:
    worker, engines, _ = work(engine_timeout=0.2)
    [job] = worker.admit([(1, SIZE)], 20)
    hold_and_lose(worker, engines[0])
    worker.start(job, image(2))
    with pytest.raises(StoppedError):
        job.result.result(5)
    assert job.images is None


def test_closing_answers_what_waits(work: Callable) -> None:
    worker, (toy,), _ = work()
    jobs = [hold(worker, toy), *(worker.submit(image(value, size=(value, 5)), 20) for value in (2, 3))]
    closing = threading.Thread(target=worker.close)
    closing.start()
    wait_for(lambda: worker.state == "stopping")
    with pytest.raises(StoppedError):
        worker.submit(image(4), 20)
    toy.go.set()
    closing.join(5)
    assert not closing.is_alive()
    assert [job.result.result(0).labels[0, 0, 0] for job in jobs] == [1, 2, 3]
    assert toy.closed.wait(5)


def test_closing_waits_until_the_engine_is_freed(work: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    worker, (toy,), _ = work()
    monkeypatch.setattr(toy, "close", lambda: time.sleep(0.3) or toy.closed.set())
    worker.close(5)
    assert toy.closed.is_set()  # else a process that ends now would be aborted by its runtime


def test_what_is_left_when_the_time_to_close_is_over_fails(work: Callable) -> None:
    worker, (toy,), _ = work()
    running = hold(worker, toy)
    left = worker.submit(image(2, size=(3, 3)), 20)
    worker.close(0.05)
    for job in (running, left):
        with pytest.raises(StoppedError):
            job.result.result(5)
