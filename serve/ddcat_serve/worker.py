"""
An engine in a thread of its own: it takes batches from the queue, and a request that breaks a batch breaks nothing but itself.

Requests may come from any thread. What an engine does cannot be stopped from outside: one that hangs is given up with its
thread, its requests fail, and another one is opened.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np

from ddcat_serve.batching import Item, Queue
from ddcat_serve.engines import Engine, Outputs
from ddcat_serve.engines.base import Images
from ddcat_serve.errors import EngineError

__all__ = ["Batch", "HungError", "Job", "LateError", "State", "StoppedError", "Worker"]

State = Literal["ready", "restarting", "stopping", "broken"]

_CLOSES_WITHIN = 10.0  # seconds in which an idle engine is freed
_RESTARTS = 3  # in a row: an engine that hangs more often is not opened again
_log = logging.getLogger(__name__)


class LateError(EngineError):
    """The time of a request was over before its turn came."""


class HungError(EngineError):
    """The engine did not come back, and was given up."""


class StoppedError(EngineError):
    """The worker takes no requests: it is stopping, restarting its engine, or has no engine that works."""


class Batch(NamedTuple):
    """What was computed at once, for whoever counts it."""

    requests: int
    images: int
    pixels: int
    seconds: float
    failed: int  # requests of it


@dataclass(eq=False)
class Job:
    """A request in the worker's hands; its result is what the engine says of its images."""

    images: Images
    item: Item
    result: "Future[Outputs]" = field(default_factory=Future)


class Worker:
    """
    One engine and its queue.

    Parameters
    ----------
    name : str
        For threads and the log.
    engine : Engine
        The first one; is closed by the worker.
    reopen : callable
        Opens another one in place of one that hangs, in the watchdog's thread.
    queue : Queue
        Of it alone.
    hangs_after : float
        Seconds after which a call is given up.
    observe : callable, optional
        Is told of every batch, in the engine's thread.
    clock : callable, optional
        In seconds, never going back.
    """

    def __init__(
        self,
        name: str,
        engine: Engine,
        *,
        reopen: Callable[[], Engine],
        queue: Queue,
        hangs_after: float,
        observe: Callable[[Batch], None] = lambda batch: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name, self._reopen, self._queue, self._hangs_after = name, reopen, queue, hangs_after
        self._observe, self._clock = observe, clock
        self._changed = threading.Condition()
        self._generation = 0  # of the engine; a thread of an older one is given up
        self._restarts = 0
        self._current: tuple[float, list[Job]] | None = None
        self._thread: threading.Thread | None = None  # that of the engine; None: given up
        self.state: State = "ready"
        self.engine = engine
        self._start(engine)
        threading.Thread(target=self._watch, name=f"watchdog-{name}", daemon=True).start()

    @property
    def waiting_pixels(self) -> int:
        """Of all requests that wait."""
        return self._queue.pixels

    def submit(self, images: Images, timeout: float) -> Job:
        """
        Let a request wait for its turn.

        Parameters
        ----------
        images : (N, H, W, 3) uint8
            Of a size that the engine takes.
        timeout : float
            Seconds after which nobody wants the answer.

        Raises
        ------
        Full
            Where it could not be answered in time.
        StoppedError
        """
        now = self._clock()
        count, height, width = images.shape[:3]
        job = Job(images, Item(count, (height, width), now + timeout))
        job.item.payload = job
        with self._changed:
            self._check_state()
            self._queue.put(job.item, now)
            self._changed.notify_all()
        return job

    def check(self, images: int, size: tuple[int, int], timeout: float) -> None:
        """Raise what `submit` would raise now for so many images of a size; nothing else."""
        with self._changed:
            self._check_state()
            now = self._clock()
            self._queue.check(Item(images, size, now + timeout), now)

    def cancel(self, job: Job) -> None:
        """Forget a request whose client has gone; one that is being computed is finished for nobody."""
        with self._changed:
            self._queue.discard(job.item)
        job.result.cancel()

    def close(self, timeout: float | None = None) -> None:
        """Answer what waits, then end; what is left after the timeout in seconds fails."""
        with self._changed:
            if self.state != "broken":
                self.state = "stopping"
            self._changed.notify_all()
            finished = self._changed.wait_for(lambda: self._current is None and not len(self._queue), timeout)
            self._generation += 1
            left = [*(self._current[1] if self._current else ()), *(item.payload for item in self._queue.clear())]
            self._current = None
            self._changed.notify_all()
            thread = self._thread
        _fail(left, StoppedError(f"{self._name} stopped"))
        if finished and thread is not None:
            thread.join(_CLOSES_WITHIN)  # a runtime that is being closed when the process ends aborts it

    def _check_state(self) -> None:
        if self.state != "ready":
            raise StoppedError(f"{self._name} is {self.state}")

    def _start(self, engine: Engine) -> None:
        self._thread = threading.Thread(
            target=self._serve, args=(engine, self._generation), name=f"engine-{self._name}", daemon=True
        )
        self._thread.start()

    def _serve(self, engine: Engine, generation: int) -> None:
        try:
            while self._serve_batch(engine, generation):
                pass
        finally:
            engine.close()

    def _serve_batch(self, engine: Engine, generation: int) -> bool:
        """Compute one batch; False where the thread is to end."""
        with self._changed:
            self._changed.wait_for(lambda: generation != self._generation or len(self._queue))
            if generation != self._generation:
                return False
            taken = self._queue.take(self._clock())
            jobs = [item.payload for item in taken.batch]
            self._current = (self._clock(), jobs) if jobs else None
            self._changed.notify_all()
        _fail([item.payload for item in taken.late], LateError("its time was over before its turn came"))
        if not jobs:
            return True
        began = self._clock()
        results = _compute(engine, jobs)
        now = self._clock()
        with self._changed:
            if generation != self._generation:
                return False  # the watchdog, or who closed, has answered for this thread
            failed = sum(isinstance(result, Exception) for result in results)
            self._queue.done(now, measured=not failed)
            self._current = None
            self._restarts = 0
            self._changed.notify_all()
        self._observe(
            Batch(len(jobs), sum(job.item.images for job in jobs), sum(j.item.pixels for j in jobs), now - began, failed)
        )
        for job, result in zip(jobs, results, strict=True):
            _answer(job, result)
        return True

    def _watch(self) -> None:
        while True:
            with self._changed:
                if self.state in ("stopping", "broken") and self._current is None:
                    return
                self._changed.wait(self._hangs_after / 4)
                if self._current is None or self._clock() - self._current[0] < self._hangs_after:
                    continue
                stuck = self._current[1]
                left = self._give_up()
            _log.error("%s: the engine did not come back within %.1f s", self._name, self._hangs_after)
            _fail(stuck, HungError("the engine did not come back"))
            _fail(left, StoppedError(f"{self._name} is {self.state}"))
            if self.state == "restarting":
                self._restart()

    def _give_up(self) -> list[Job]:
        """Leave the thread to itself; gives the requests that waited."""
        self._generation += 1
        self._thread = None
        self._current = None
        self._queue.done(self._clock(), measured=False)
        left = [item.payload for item in self._queue.clear()]
        self._restarts += 1
        if self.state == "ready":
            self.state = "restarting" if self._restarts <= _RESTARTS else "broken"
        self._changed.notify_all()
        return left

    def _restart(self) -> None:
        try:
            engine = self._reopen()
        except Exception as error:  # of any runtime, or of a bundle that is not there any more
            _log.error("%s: the engine cannot be opened again: %s", self._name, error)
            self._become("broken")
            return
        with self._changed:
            if self.state != "restarting":  # closed meanwhile
                engine.close()
                return
            self.engine = engine
            self._start(engine)
        self._become("ready")

    def _become(self, state: State) -> None:
        with self._changed:
            if self.state == "restarting":
                self.state = state


def _compute(engine: Engine, jobs: Sequence[Job]) -> list[Outputs | Exception]:
    """Give each request's outputs; where the batch fails, each is tried alone."""
    try:
        whole = engine.infer(jobs[0].images if len(jobs) == 1 else np.concatenate([job.images for job in jobs]))
    except Exception as error:  # of any runtime: whoever waits must be told
        if len(jobs) == 1:
            return [error]
        _log.warning("a batch of %d requests failed (%s): each is tried alone", len(jobs), error)
        return [result for job in jobs for result in _compute(engine, [job])]
    found: list[Outputs | Exception] = []
    first = 0
    for job in jobs:
        part = slice(first, first := first + job.item.images)
        found.append(
            Outputs(
                labels=whole.labels[part],
                logits=None if whole.logits is None else whole.logits[part],
                confidence=None if whole.confidence is None else whole.confidence[part],
            )
        )
    return found


def _answer(job: Job, result: Outputs | Exception) -> None:
    if not job.result.set_running_or_notify_cancel():
        return  # the client has gone
    if isinstance(result, Exception):
        job.result.set_exception(result)
    else:
        job.result.set_result(result)


def _fail(jobs: Sequence[Job], error: Exception) -> None:
    for job in jobs:
        _answer(job, error)
