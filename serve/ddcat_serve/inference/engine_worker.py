"""
An engine in a thread of its own: it takes batches from the queue, and a request that breaks a batch breaks nothing but itself.

Requests may come from any thread. What an engine does cannot be stopped from outside: one that hangs is given up with its
thread, its requests fail, and another one is opened. Nothing here keeps the images of a request that has ended.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from ddcat.engines import Engine
from ddcat.engines.base import Images
from ddcat.engines.errors import EngineError
from ddcat_serve.inference.admission_queue import Item, Queue
from ddcat_serve.inference.jobs import HungError, Job, LateError, StoppedError, answer, end, fail, infer

__all__ = ["Batch", "State", "Worker", "engines_at_work"]

State = Literal["ready", "restarting", "stopping", "broken"]

_CLOSES_WITHIN = 10.0  # seconds in which an idle engine is freed
_RESTARTS = 3  # in the life of the process, for what is given up computes on: after as many no engine is opened again
_OPENS_WITHIN = 300.0  # seconds in which an engine is opened again and has shown that it answers
_RESTS_AFTER = (
    10.0  # seconds without work after which an engine gives memory back, and its speed is measured where it is doubted
)
_ENGINE = "engine-"  # begins the names of threads
_log = logging.getLogger(__name__)


class Batch(NamedTuple):
    """What was computed at once, for whoever counts it."""

    requests: int
    images: int
    pixels: int
    seconds: float
    failed: int  # requests of it


class _Call(NamedTuple):
    """What the engine's thread does at the moment."""

    began: float
    most: float  # seconds after which it is given up
    jobs: list[Job]  # that are not answered yet


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
        Opens another one in place of one that hangs, in a thread of its own; it has shown that it answers as it should.
    queue : Queue
        Of it alone.
    hangs_after : float
        Seconds after which a call is given up.
    kept_pixels : int, optional
        Most pixels of all sizes together that the engine may keep memory for between calls; without a bound by default.
    measure : callable, optional
        Gives the pixels per second that an engine computes; is asked, in its thread and while it is idle, where requests were
        refused for its speed: that may have been measured on a machine that was busy.
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
        kept_pixels: int | None = None,
        measure: Callable[[Engine], float] | None = None,
        observe: Callable[[Batch], None] = lambda batch: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name, self._reopen, self._queue, self._hangs_after = name, reopen, queue, hangs_after
        self._measure, self._observe, self._clock = measure, observe, clock
        self._kept_pixels = kept_pixels
        self._kept: dict[tuple[int, ...], int] = {}  # pixels of the shapes that the engine may keep memory for
        self._worked = False  # since it last rested for want of work
        self._changed = threading.Condition()
        self._generation = 0  # of the engine; a thread of an older one is given up
        self._given_up = 0
        self._call: _Call | None = None
        self._thread: threading.Thread | None = None  # that of the engine; None: given up
        self.state: State = "ready"
        self.engine = engine
        self._start(lambda: engine)
        threading.Thread(target=self._watch, name=f"watchdog-{name}", daemon=True).start()

    @property
    def waiting_pixels(self) -> int:
        """Of all requests that wait."""
        return self._queue.pixels

    def admit(self, images: Sequence[tuple[int, tuple[int, int]]], timeout: float) -> list[Job]:
        """
        Give requests their places before their images are there: all of them or none.

        Parameters
        ----------
        images : sequence of (N, (height, width))
            Their number and size, of each request.
        timeout : float
            Seconds after which nobody wants the answers.

        Returns
        -------
        list of Job
            Each of which ends by `begin` or by `cancel`.

        Raises
        ------
        TooLarge
            Where the engine cannot do one of them.
        Full
            Where they could not be answered in time.
        LateError
            Where their time is over.
        StoppedError
        """
        with self._changed:
            self._check_state()
            now = self._clock()
            if timeout <= 0:
                raise LateError("its timeout passed before it entered the queue")
            jobs = [Job(Item(count, size, now + timeout, ready=False)) for count, size in images]
            self._queue.put([job.item for job in jobs], now)
            for job in jobs:
                job.item.payload = job  # until the job ends: see `end`
        return jobs

    def begin(self, job: Job, images: Images) -> None:
        """Let a request that has its place be computed when its turn comes; nothing where it has failed meanwhile."""
        with self._changed:
            if job.item.waiting:
                job.images, job.item.ready = images, True
                self._changed.notify_all()

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
        TooLarge, Full, LateError, StoppedError
            As `admit`.
        """
        count, height, width = images.shape[:3]
        [job] = self.admit([(count, (height, width))], timeout)
        self.begin(job, images)
        return job

    def cancel(self, job: Job) -> None:
        """Forget a request whose client has gone; one that is being computed is finished for nobody."""
        with self._changed:
            self._queue.discard(job.item)
            end(job)
            self._changed.notify_all()  # who closes waits for an empty queue
        job.result.cancel()

    def close(self, timeout: float | None = None) -> None:
        """Answer what waits, then end; what is left after the timeout in seconds fails."""
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
            thread.join(_CLOSES_WITHIN)  # a runtime that is being closed when the process ends aborts it

    def _check_state(self) -> None:
        if self.state != "ready":
            raise StoppedError(f"{self._name} is {self.state}")

    def _start(self, open_engine: Callable[[], Engine]) -> None:
        self._thread = threading.Thread(
            target=self._serve, args=(open_engine, self._generation), name=f"{_ENGINE}{self._name}", daemon=True
        )
        self._thread.start()

    def _serve(self, open_engine: Callable[[], Engine], generation: int) -> None:
        """Open an engine, and compute batches until it is given up or the worker closes."""
        try:
            engine = open_engine()
        except Exception as error:  # of any runtime, or of a bundle that is not there any more or is another one
            _log.error("%s: the engine cannot be opened again: %s", self._name, error)
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
        """Compute one batch, or rest where there is none for a while; False where the thread is to end."""
        with self._changed:
            idle = not self._changed.wait_for(lambda: generation != self._generation or self._queue.can_take, _RESTS_AFTER)
            if generation != self._generation:
                return False
            taken = self._queue.take(self._clock())
            jobs = [item.payload for item in taken.batch]
            images = [job.images for job in jobs]  # whoever goes takes them from the job
            self._call = _Call(self._clock(), self._hangs_after, jobs) if jobs else None
            self._changed.notify_all()
        fail([item.payload for item in taken.late], lambda: LateError("its timeout passed before its turn came"))
        if idle:
            return self._use_idle_time(engine, generation)
        if not jobs:
            return True
        return self._compute(engine, generation, jobs, images) and (
            not self._keeps_too_much(jobs) or self._rest(engine, generation)
        )

    def _compute(self, engine: Engine, generation: int, jobs: list[Job], images: Sequence[Images]) -> bool:
        """Compute a batch, and where it fails each of its requests alone; False where it was given up meanwhile."""
        began = self._clock()
        results = infer(engine, images)
        if len(jobs) > 1 and isinstance(results[0], Exception):
            _log.warning("a batch of %d requests failed (%s): each is tried alone", len(jobs), results[0])
            results = []
            for place, job in enumerate(jobs):
                if not self._enter(generation, jobs[place:]):
                    return False
                results += infer(engine, images[place : place + 1])
                if not self._enter(generation, jobs[place + 1 :]):
                    return False
                answer(job, results[-1])  # at once: the next one may hang
        now = self._clock()
        failed = sum(isinstance(result, Exception) for result in results)
        with self._changed:
            if generation != self._generation:
                return False  # the watchdog, or who closed, has answered for this thread
            self._queue.done(now, measured=not failed)
            self._call = None
            self._changed.notify_all()
        self._observe(
            Batch(len(jobs), sum(job.item.images for job in jobs), sum(job.item.pixels for job in jobs), now - began, failed)
        )
        for job, result in zip(jobs, results, strict=True):
            answer(job, result)
        return True

    def _enter(self, generation: int, jobs: list[Job], most: float | None = None) -> bool:
        """Begin a call of the engine, for jobs that are not answered yet; False where it was given up meanwhile."""
        with self._changed:
            if generation == self._generation:
                self._call = _Call(self._clock(), most or self._hangs_after, jobs)
            return generation == self._generation

    def _use_idle_time(self, engine: Engine, generation: int) -> bool:
        """Measure a speed that is doubted, and rest after work; False where the engine was given up meanwhile."""
        if self._measure is not None and self._queue.doubted:
            self._worked = True
            if not self._measure_anew(self._measure, engine, generation):
                return False
        worked, self._worked = self._worked, False
        return not worked or self._rest(engine, generation)

    def _measure_anew(self, measure: Callable[[Engine], float], engine: Engine, generation: int) -> bool:
        """Measure the speed; False where the engine was given up meanwhile."""
        if not self._enter(generation, [], _OPENS_WITHIN):
            return False
        speed = 0.0
        try:
            speed = measure(engine)
        except Exception as error:  # of any runtime
            _log.warning("%s: the engine's speed cannot be measured: %s", self._name, error)
        with self._changed:
            if generation == self._generation:
                self._queue.believe(speed, self._clock())
                self._call = None
                self._changed.notify_all()
            return generation == self._generation

    def _keeps_too_much(self, jobs: Sequence[Job]) -> bool:
        """Whether the engine may keep memory for too many pixels, now that it has computed these."""
        images = sum(job.item.images for job in jobs)
        height, width = jobs[0].item.size
        self._kept[images, height, width] = images * height * width
        self._worked = True  # also where it rests now: answers that are being written still hold some of its memory
        return self._kept_pixels is not None and sum(self._kept.values()) > self._kept_pixels

    def _rest(self, engine: Engine, generation: int) -> bool:
        """Let the engine give memory back; False where it was given up meanwhile."""
        if not self._enter(generation, []):
            return False
        try:
            engine.rest()
        except EngineError as error:
            _log.warning("%s: the engine gives no memory back: %s", self._name, error)
        with self._changed:
            if generation == self._generation:
                self._kept.clear()
                self._call = None
                self._changed.notify_all()
            return generation == self._generation

    def _watch(self) -> None:
        tick = self._hangs_after / 4
        while True:
            with self._changed:
                if self.state in ("stopping", "broken") and self._call is None:
                    return
                before = self._clock()
                self._changed.wait(tick)
                if self._call is None:
                    continue
                now = self._clock()
                if now - before > tick:  # the process was stopped, or had no processor, and so had the engine
                    self._call = self._call._replace(began=self._call.began + now - before - tick)
                if now - self._call.began < self._call.most:
                    continue
                stuck, most = self._call.jobs, self._call.most
                left = self._give_up()
            _log.error("%s: the engine did not come back within %.1f s", self._name, most)
            fail(stuck, lambda: HungError("the engine did not come back"))
            fail(left, lambda: StoppedError(f"{self._name} is {self.state}"))
            self._restart()

    def _give_up(self) -> list[Job]:
        """Leave the thread to itself; gives the requests that waited."""
        self._generation += 1
        self._thread = None
        self._call = None
        self._queue.done(self._clock(), measured=False)
        left = [item.payload for item in self._queue.clear()]
        self._given_up += 1
        if self.state in ("ready", "restarting"):
            self.state = "restarting" if self._given_up <= _RESTARTS else "broken"
        self._changed.notify_all()
        return left

    def _restart(self) -> None:
        with self._changed:
            if self.state == "restarting":  # and not broken, or closed meanwhile
                self._call = _Call(self._clock(), _OPENS_WITHIN, [])  # what is opened may hang, too
                self._start(self._reopen)

    def _become(self, state: State) -> None:
        if self.state == "restarting":
            self.state = state


def engines_at_work() -> bool:
    """Return whether a thread of an engine is alive, be it one that was given up."""
    return any(thread.name.startswith(_ENGINE) for thread in threading.enumerate())
