"""
An engine in a thread of its own: it computes batches from the queue; a request that breaks a batch fails alone.

All methods are thread-safe. A call of an engine cannot be interrupted: the thread of one that hangs is abandoned, its requests
fail, and a new engine is opened. Nothing here keeps the images of a request that has ended.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Literal, NamedTuple

from ddcat.engines import Engine
from ddcat.engines.base import Images
from ddcat_serve.inference.admission_queue import AdmissionQueue, Item
from ddcat_serve.inference.jobs import HungError, Job, LateError, StoppedError, fail, infer_batch, release, set_result
from ddcat_serve.observe.usage import Batch

__all__ = ["EngineWorker", "State", "engines_at_work"]

State = Literal["ready", "restarting", "stopping", "broken"]

_CLOSE_TIMEOUT = 10.0  # seconds in which an idle engine is freed
_MAX_RESTARTS = 3  # per process: abandoned threads compute on
_OPEN_TIMEOUT = 300.0  # seconds in which a new engine must open and pass its golden images
_IDLE_AFTER = 10.0  # seconds without work after which an engine frees memory, and doubts about its speed are settled
_THREAD_PREFIX = "engine-"
_log = logging.getLogger(__name__)


class _Call(NamedTuple):
    """A call of the engine in progress."""

    began: float
    timeout: float  # seconds until the engine is abandoned
    jobs: list[Job]  # not answered yet


class EngineWorker:
    """
    An engine, its queue and its thread; it closes the engine.

    `name` is that of threads and in the log. `reopen` opens and checks a new engine in place of one that hangs, in a thread of
    its own; a call hangs after `engine_timeout` seconds. Between calls the engine may keep memory for `kept_pixels` over all
    sizes.

    `measure` returns an engine's throughput in pixels per second. It is called in the engine's thread while that is idle, if
    requests were refused for its speed, which may have been measured while the machine was busy. `observe` is called after each
    batch, in the same thread. A batch is computed in a context of `turn`, which must let it go on within seconds. `clock` is
    monotonic, in seconds.
    """

    def __init__(
        self,
        name: str,
        engine: Engine,
        *,
        reopen: Callable[[], Engine],
        queue: AdmissionQueue,
        engine_timeout: float,
        kept_pixels: int | None = None,
        measure: Callable[[Engine], float] | None = None,
        observe: Callable[[Batch], None] = lambda batch: None,
        turn: Callable[[], AbstractContextManager[None]] = nullcontext,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name, self._reopen, self._queue, self._engine_timeout = name, reopen, queue, engine_timeout
        self._measure, self._observe, self._turn, self._clock = measure, observe, turn, clock
        self._kept_pixels = kept_pixels
        self._kept: dict[tuple[int, ...], int] = {}  # pixels by input shape, for which the engine may keep memory
        self._worked = False  # since it last freed its memory
        self._changed = threading.Condition()
        self._generation = 0  # of the engine; threads of older ones are abandoned
        self._abandoned = 0
        self._call: _Call | None = None
        self._thread: threading.Thread | None = None  # of the engine; None: abandoned
        self.state: State = "ready"
        self.engine = engine
        self._start_thread(lambda: engine)
        threading.Thread(target=self._watch, name=f"watchdog-{name}", daemon=True).start()

    @property
    def waiting_pixels(self) -> int:
        """Pixels of all queued requests."""
        return self._queue.pixels

    def admit(self, images: Sequence[tuple[int, tuple[int, int]]], timeout: float) -> list[Job]:
        """
        Queue jobs before their images are decoded: all of them or none; each is then passed to `start` or `cancel`.

        `images` are number and (height, width) of each job's images, `timeout` are the seconds until the deadline. TooLarge if
        the engine cannot handle one of them; Overloaded if they could not be answered in time; LateError if the deadline has
        passed; StoppedError if no requests are accepted.
        """
        with self._changed:
            now = self._check(timeout)
            jobs = [Job(Item(count, size, now + timeout, ready=False)) for count, size in images]
            self._queue.put([job.item for job in jobs], now)
            for job in jobs:
                job.item.payload = job  # until the job ends: see `release`
        return jobs

    def check(self, images: Sequence[tuple[int, tuple[int, int]]], timeout: float, *, ahead: int = 0) -> None:
        """Raise as `admit` would for jobs that will be queued one after another; `ahead`: pixels of others that will."""
        with self._changed:
            now = self._check(timeout)
            self._queue.check([Item(count, size, now + timeout) for count, size in images], now, ahead=ahead)

    def start(self, job: Job, images: Images) -> None:
        """Make a queued job ready to be computed; does nothing if it has failed meanwhile."""
        with self._changed:
            if job.item.waiting:
                job.images, job.item.ready = images, True
                self._changed.notify_all()

    def submit(self, images: Images, timeout: float) -> Job:
        """Queue images, (N, H, W, C) uint8, of a size that the engine accepts; otherwise as `admit`."""
        count, height, width = images.shape[:3]
        [job] = self.admit([(count, (height, width))], timeout)
        self.start(job, images)
        return job

    def cancel(self, job: Job) -> None:
        """Drop a job whose client has gone; if it is being computed, its result is discarded."""
        with self._changed:
            self._queue.discard(job.item)
            release(job)
            self._changed.notify_all()  # close() waits for an empty queue
        job.result.cancel()

    def close(self, timeout: float | None = None) -> None:
        """Compute the queued jobs, then end; jobs left after `timeout` seconds fail."""
        with self._changed:
            if self.state != "broken":
                self.state = "stopping"
            self._changed.notify_all()
            finished = self._changed.wait_for(lambda: self._call is None and not len(self._queue), timeout)
            self._generation += 1
            left = [*(self._call.jobs if self._call else ()), *(item.payload for item in self._queue.clear())]
            self._call = None
            self._changed.notify_all()
            thread = self._thread
        fail(left, lambda: StoppedError(f"{self._name} stopped"))
        if finished and thread is not None:
            thread.join(_CLOSE_TIMEOUT)  # a runtime that is being closed when the process ends would abort it

    def _check(self, timeout: float) -> float:
        if self.state != "ready":
            raise StoppedError(f"{self._name} is {self.state}")
        if timeout <= 0:
            raise LateError("its timeout passed before it entered the queue")
        return self._clock()

    def _start_thread(self, open_engine: Callable[[], Engine]) -> None:
        self._thread = threading.Thread(
            target=self._serve, args=(open_engine, self._generation), name=f"{_THREAD_PREFIX}{self._name}", daemon=True
        )
        self._thread.start()

    def _serve(self, open_engine: Callable[[], Engine], generation: int) -> None:
        """Open an engine, and compute batches until it is abandoned or the worker closes."""
        try:
            engine = open_engine()
        except Exception as error:  # of any runtime, or of a bundle that is gone or has changed
            _log.error("%s: the engine cannot be reopened: %s", self._name, error)
            with self._changed:
                if generation == self._generation:
                    self._call = None
                    self._become("broken")
            return
        try:
            with self._changed:
                if generation != self._generation:
                    return
                self.engine, self._call = engine, None
                self._kept.clear()
                self._become("ready")
            while self._serve_batch(engine, generation):
                pass
        finally:
            engine.close()

    def _serve_batch(self, engine: Engine, generation: int) -> bool:
        """Compute one batch, or use idle time; return False if the thread is to end."""
        with self._changed:
            idle = not self._changed.wait_for(lambda: generation != self._generation or self._queue.can_take, _IDLE_AFTER)
            if generation != self._generation:
                return False
            taken = self._queue.take(self._clock())
            jobs = [item.payload for item in taken.batch]
            images = [job.images for job in jobs]  # a cancelled job drops its own
            self._call = _Call(self._clock(), self._engine_timeout, jobs) if jobs else None
            self._changed.notify_all()
        fail([item.payload for item in taken.late], lambda: LateError("its timeout passed while it was queued"))
        if idle:
            return self._use_idle_time(engine, generation)
        if not jobs:
            return True
        return self._compute(engine, generation, jobs, images) and (
            not self._keeps_too_much(jobs) or self._rest(engine, generation)
        )

    def _compute(self, engine: Engine, generation: int, jobs: list[Job], images: Sequence[Images]) -> bool:
        """Compute a batch, and if it fails each of its jobs alone; return False if the engine was abandoned meanwhile."""
        with self._turn():
            began = self._clock()
            results = infer_batch(engine, images)
        if len(jobs) > 1 and isinstance(results[0], Exception):
            _log.warning("a batch of %d requests failed (%s): trying each alone", len(jobs), results[0])
            results = []
            for place, job in enumerate(jobs):
                if not self._enter(generation, jobs[place:]):
                    return False
                results += infer_batch(engine, images[place : place + 1])
                if not self._enter(generation, jobs[place + 1 :]):
                    return False
                set_result(job, results[-1])  # at once: the next one may hang
        now = self._clock()
        failed = sum(isinstance(result, Exception) for result in results)
        with self._changed:
            if generation != self._generation:
                return False  # the watchdog or close() has answered
            self._queue.done(now, measured=not failed)
            self._call = None
            self._changed.notify_all()
        self._observe(
            Batch(len(jobs), sum(job.item.images for job in jobs), sum(job.item.pixels for job in jobs), now - began, failed)
        )
        for job, result in zip(jobs, results, strict=True):
            set_result(job, result)
        return True

    def _enter(self, generation: int, jobs: list[Job], timeout: float | None = None) -> bool:
        """Begin a call of the engine for unanswered jobs; return False if the engine was abandoned meanwhile."""
        with self._changed:
            if generation == self._generation:
                self._call = _Call(self._clock(), timeout or self._engine_timeout, jobs)
            return generation == self._generation

    def _use_idle_time(self, engine: Engine, generation: int) -> bool:
        """Measure the speed if requests were refused for it, and free memory; return False if the engine was abandoned."""
        if self._measure is not None and self._queue.refused_for_speed:
            self._worked = True
            if not self._measure_speed(self._measure, engine, generation):
                return False
        worked, self._worked = self._worked, False
        return not worked or self._rest(engine, generation)

    def _measure_speed(self, measure: Callable[[Engine], float], engine: Engine, generation: int) -> bool:
        """Measure the speed; return False if the engine was abandoned meanwhile."""
        speed = 0.0

        def work() -> None:
            nonlocal speed
            speed = measure(engine)

        return self._beside_batches(
            work,
            generation,
            "its speed cannot be measured",
            lambda: self._queue.update_speed(speed, self._clock()),
            _OPEN_TIMEOUT,
        )

    def _keeps_too_much(self, jobs: Sequence[Job]) -> bool:
        """Return whether the engine may now keep memory for too many pixels."""
        images = sum(job.item.images for job in jobs)
        height, width = jobs[0].item.size
        self._kept[images, height, width] = images * height * width
        self._worked = True  # even if it frees memory now: responses being written still hold some of it
        return self._kept_pixels is not None and sum(self._kept.values()) > self._kept_pixels

    def _rest(self, engine: Engine, generation: int) -> bool:
        """Let the engine free memory; return False if it was abandoned meanwhile."""
        return self._beside_batches(engine.rest, generation, "it cannot free memory", self._kept.clear)

    def _beside_batches(
        self, work: Callable[[], None], generation: int, fault: str, then: Callable[[], None], timeout: float | None = None
    ) -> bool:
        """Let the engine do work that answers nobody; return False if it was abandoned meanwhile."""
        if not self._enter(generation, [], timeout):
            return False
        try:
            work()
        except Exception as error:  # of any runtime
            _log.warning("%s: %s: %s", self._name, fault, error)
        with self._changed:
            if generation == self._generation:
                then()
                self._call = None
                self._changed.notify_all()
            return generation == self._generation

    def _watch(self) -> None:
        tick = self._engine_timeout / 4
        while True:
            with self._changed:
                if self.state in ("stopping", "broken") and self._call is None:
                    return
                before = self._clock()
                self._changed.wait(tick)
                if self._call is None:
                    continue
                now = self._clock()
                if now - before > tick:  # the process was suspended or starved, and so was the engine
                    self._call = self._call._replace(began=self._call.began + now - before - tick)
                if now - self._call.began < self._call.timeout:
                    continue
                stuck, timeout = self._call.jobs, self._call.timeout
                left = self._abandon_thread()
            _log.error("%s: the engine did not return within %.1f s", self._name, timeout)
            fail(stuck, lambda: HungError("the engine did not return"))
            fail(left, lambda: StoppedError(f"{self._name} is {self.state}"))
            self._restart()

    def _abandon_thread(self) -> list[Job]:
        """Abandon the engine's thread; return the queued jobs."""
        self._generation += 1
        self._thread = None
        self._call = None
        self._queue.done(self._clock(), measured=False)
        left = [item.payload for item in self._queue.clear()]
        self._abandoned += 1
        if self.state in ("ready", "restarting"):
            self.state = "restarting" if self._abandoned <= _MAX_RESTARTS else "broken"
        self._changed.notify_all()
        return left

    def _restart(self) -> None:
        with self._changed:
            if self.state == "restarting":  # not broken, or closed meanwhile
                self._call = _Call(self._clock(), _OPEN_TIMEOUT, [])  # opening may hang, too
                self._start_thread(self._reopen)

    def _become(self, state: State) -> None:
        if self.state == "restarting":
            self.state = state


def engines_at_work() -> bool:
    """Return whether a thread of an engine is alive, abandoned ones included."""
    return any(thread.name.startswith(_THREAD_PREFIX) for thread in threading.enumerate())
