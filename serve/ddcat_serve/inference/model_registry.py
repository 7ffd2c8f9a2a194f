"""Bundles that are loaded, warm, and answer as they did when they were exported."""

import asyncio
import contextlib
import dataclasses
import logging
import math
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from starlette.requests import ClientDisconnect

from ddcat.bundle import NO_TRUST_POLICY, Bundle, TrustPolicy, open_bundle
from ddcat.engines import Engine, Outputs, open_engine
from ddcat.engines.base import Images
from ddcat.engines.checks import check_images, check_size
from ddcat.engines.golden import Example, check_answers, read_golden
from ddcat.passport import PassportStatus, read_passport
from ddcat_serve.drain import Drain
from ddcat_serve.errors import RequestError, ServeError, quoted
from ddcat_serve.inference.admission_queue import Full, Queue, TooLarge
from ddcat_serve.inference.capacity import most_pixels
from ddcat_serve.inference.engine_worker import Batch, Worker
from ddcat_serve.inference.jobs import HungError, Job, LateError, StoppedError
from ddcat_serve.inference.memory import memory_size, resident
from ddcat_serve.inference.sources import NAME, Source
from ddcat_serve.inference.warm_up import measure_speed, warm_up
from ddcat_serve.observe.answer_statistics import golden_statistics
from ddcat_serve.observe.drift_monitor import Monitor
from ddcat_serve.observe.usage import Usage
from ddcat_serve.settings import Settings

__all__ = ["Models", "ServedModel", "find", "load_models"]


_log = logging.getLogger(__name__)

_FREE = 0.5  # share of the free memory that the engines may take: the rest is for bodies, images that wait, and masks
_KEPT = 0.25  # share of the pixels of one call that an engine may keep memory for between calls
_FAR = 1 / 3  # share of the time after which an engine is given up that a call may be expected to take

Observe = Callable[["ServedModel", Batch], None]


class ServedModel:
    """
    A bundle whose engine answers requests in batches.

    Parameters
    ----------
    bundle : Bundle
        What is known of it; nobody asks for its files any more.
    name, version : str
        That it is served by.
    passport : Found
        What the gate said of it.
    examples : tuple of Example
        Its golden images, where they may be shown.
    worker : Worker
        Has its engine.
    monitor : Monitor, optional
        Looks at its answers; one that knows no golden images by default.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        name: str,
        version: str,
        passport: PassportStatus,
        worker: Worker,
        examples: tuple[Example, ...] = (),
        monitor: Monitor | None = None,
    ) -> None:
        self.bundle, self.name, self.version = bundle, name, version
        self.passport, self.worker, self.examples = passport, worker, examples
        self.classes = bundle.manifest.class_table()
        self.monitor = monitor or Monitor(len(self.classes))
        self.usage = Usage()

    @property
    def engine(self) -> Engine:
        """What computes, for what it says of itself."""
        return self.worker.engine

    @property
    def ready(self) -> bool:
        """Whether it takes requests."""
        return self.worker.state == "ready"

    def about(self) -> dict[str, Any]:
        """Give, for JSON, what it was made from, who is known to have made it, and what the gate said of it."""
        manifest, passport = self.bundle.manifest, self.passport.passport
        return {
            "version": self.version,
            "bundle": self.bundle.digest,
            "trust": self.bundle.trust,
            "passport": None if passport is None else passport.model_dump(mode="json"),
            "passport_known": self.passport.summary,
            "method": manifest.source.method,
            "architecture": manifest.source.architecture,
            "precision": manifest.engine.effective_precision,
            "classes": [entry.model_dump(mode="json") for entry in manifest.classes],
        }

    def admit(self, images: Sequence[tuple[int, tuple[int, int]]], timeout: float) -> list[Job]:
        """
        Give images their places, all of them or none, and refuse before any work is done what would be refused after it.

        Parameters
        ----------
        images : sequence of (N, (height, width))
            Number and size of those that are computed together.
        timeout : float
            Seconds after which nobody wants the answers.

        Returns
        -------
        list of Job
            For `infer`, or for `forget`.

        Raises
        ------
        InputError
            Where the engine does not take them.
        RequestError
            413 where the engine could not answer them in time or at all, 429 with Retry-After where it could not now, 503 where
            nothing can be answered now, 504 where the time is over.
        """
        for count, size in images:
            check_size(count, *size, self.bundle.manifest.shapes)
        with _told(self.name):
            return self.worker.admit(images, timeout)

    def forget(self, job: Job) -> None:
        """Give up a place that is not needed any more; nothing where it was used."""
        self.worker.cancel(job)

    async def infer(
        self,
        images: Images,
        *,
        timeout: float = 0.0,
        job: Job | None = None,
        gone: Callable[[], Awaitable[object]] | None = None,
    ) -> Outputs:
        """
        Segment images when their turn comes.

        Parameters
        ----------
        images : (N, H, W, 3) uint8
        timeout : float
            Seconds after which nobody wants the answer, where they have no place yet.
        job : Job, optional
            Their place, which `admit` gave them.
        gone : callable, optional
            Its awaitable ends when the client has gone; the images then leave the queue.

        Raises
        ------
        InputError, RequestError
            As `admit`.
        ClientDisconnect
        """
        check_images(images, self.bundle.manifest.shapes)
        began, outputs, count = time.monotonic(), None, len(images)
        try:
            with _told(self.name):
                if job is None:
                    job = self.worker.submit(images, timeout)
                else:
                    self.worker.begin(job, images)
                del images  # an error would keep this frame, and what is in it
                outputs = await self._wait(job, gone)
        finally:
            self.usage.count_request(count, time.monotonic() - began, answered=outputs is not None)
            del job
        self.monitor.see(outputs)
        return outputs

    def close(self, timeout: float) -> None:
        """Answer what waits, and free the engine; what is left after the timeout in seconds fails."""
        self.worker.close(timeout)
        self.monitor.close()

    async def _wait(self, job: Job, gone: Callable[[], Awaitable[object]] | None) -> Outputs:
        result = asyncio.wrap_future(job.result)
        leaving = None if gone is None else asyncio.ensure_future(gone())
        try:
            either: list[asyncio.Future[Any]] = [result] if leaving is None else [result, leaving]
            left = max(0.0, job.item.deadline - time.monotonic())
            await asyncio.wait(either, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            if result.done():
                return result.result()
            if leaving is not None and leaving.done():
                raise ClientDisconnect
            raise LateError("its timeout passed before it was computed")
        finally:
            if leaving is not None:
                leaving.cancel()
            if not result.done():
                self.worker.cancel(job)
            elif not result.cancelled():
                result.exception()  # which asyncio would miss where the request was cancelled at the same time
            del either, result, job  # an error would keep this frame, and they would keep the error


Models = Mapping[str, Mapping[str, ServedModel]]  # by name, then by version, in the order in which they were named


def find(models: Models, name: str, version: str | None = None) -> ServedModel:
    """
    Give a model, its last version by default.

    Raises
    ------
    RequestError
        404 where there is none.
    """
    versions = models.get(name)
    if versions is None:
        raise RequestError(404, f"no model is named {quoted(name)}; there is {', '.join(models)}")
    if version is None:
        return list(versions.values())[-1]
    if version not in versions:
        raise RequestError(404, f"{name} has no version {quoted(version)}; it has {', '.join(versions)}")
    return versions[version]


@contextlib.contextmanager
def load_models(
    sources: Sequence[Source | Path],
    *,
    settings: Settings,
    threads: int | None = None,
    trust: TrustPolicy = NO_TRUST_POLICY,
    observe: Observe = lambda model, batch: None,
    drain: Drain | None = None,
) -> Iterator[dict[str, dict[str, ServedModel]]]:
    """
    Verify and load bundles, warm them up, and replay their golden images; at the end, answer what waits and close them.

    Parameters
    ----------
    sources : sequence of Source or Path
        Bundles of one name become its versions 1, 2, ... in this order.
    settings : Settings
    threads : int, optional
        Of each engine; the physical cores by default.
    trust : TrustPolicy, optional
        What must be shown of who wrote them.
    observe : callable, optional
        Is told of every batch, in the thread of its engine.
    drain : Drain, optional
        That they share with others; by default one of their own, which begins with their end.

    Yields
    ------
    dict of str to dict of str to ServedModel
        By name, then by version.

    Raises
    ------
    BundleError, EngineError, ServeError
        For a bundle that is not whole or not to be trusted, does not run, or does not answer as it did.
    """
    models: dict[str, dict[str, ServedModel]] = {}
    try:
        for given in sources:
            source = given if isinstance(given, Source) else Source(given)
            bundle = open_bundle(source.path, trust)
            name = source.name or bundle.manifest.name
            if not NAME.fullmatch(name):
                raise ServeError(
                    f"{source.path}: {name!r} is not a valid name of a model: use letters, digits, '.', '-' and '_'"
                )
            versions = models.setdefault(name, {})
            model = _load(bundle, name, str(len(versions) + 1), settings, threads, trust, observe, share=1 / len(sources))
            versions[model.version] = model
        yield models
    finally:
        left = (drain or Drain(settings.drain)).begin()
        _close([model for versions in models.values() for model in versions.values()], left)


def _load(
    bundle: Bundle,
    name: str,
    version: str,
    settings: Settings,
    threads: int | None,
    trust: TrustPolicy,
    observe: Observe,
    *,
    share: float,
) -> ServedModel:
    passport = read_passport(bundle, trust)  # a refusal comes before there is an engine to free
    if passport.warning is not None:
        _log.warning("%s, version %s: %s", name, version, passport.warning)
    engine = open_engine(bundle, threads=threads)
    try:
        examples = read_golden(bundle)
        pace, overhead, trials = warm_up(
            bundle, engine, examples, tolerance=settings.golden_tolerance, batch_pixels=settings.batch_pixels
        )
        monitor = Monitor(len(bundle.manifest.classes), golden_statistics(bundle, engine, examples))
        engine.rest()
    except BaseException:
        engine.close()
        raise
    call_pixels = min(settings.max_pixels, most_pixels(trials, _FREE * share * (memory_size() - resident())))
    known = dataclasses.replace(bundle, files={})  # the runtime has its own copy

    def observe_batch(batch: Batch) -> None:
        model.usage.count_batch(batch)
        observe(model, batch)

    worker = Worker(
        name,
        engine,
        reopen=partial(_reopen, known, threads, settings.golden_tolerance),
        queue=Queue(
            max_pixels=settings.queue_pixels,
            batch_pixels=pace.batch_pixels,
            batch_images=bundle.manifest.shapes.batch.maximum,
            pixels_per_second=pace.pixels_per_second,
            call_overhead=overhead,
            call_pixels=call_pixels,
            call_seconds=_FAR * settings.hangs_after,
        ),
        hangs_after=settings.hangs_after,
        kept_pixels=int(_KEPT * call_pixels),
        measure=partial(measure_speed, shapes=bundle.manifest.shapes, examples=examples[:1], batch_pixels=pace.batch_pixels),
        observe=observe_batch,
    )
    model = ServedModel(
        known,
        name=name,
        version=version,
        passport=passport,
        worker=worker,
        examples=examples if settings.demo else (),
        monitor=monitor,
    )
    return model


def _reopen(known: Bundle, threads: int | None, tolerance: float) -> Engine:
    """Open an engine again from the very bytes that were verified; whatever else lies there by now is refused."""
    bundle = open_bundle(known.path, TrustPolicy(digests=(known.digest,)))
    engine = open_engine(bundle, threads=threads)
    try:
        check_answers(bundle, engine, read_golden(bundle), tolerance=tolerance)
    except BaseException:
        engine.close()
        raise
    return engine


def _close(models: Sequence[ServedModel], timeout: float) -> None:
    """Close them at the same time: none has less of it for another's last answers."""
    # daemons, which nobody waits for at the interpreter's end: a second signal breaks the join and ends the process
    closing = [threading.Thread(target=model.close, args=(timeout,), name="close", daemon=True) for model in models]
    for thread in closing:
        thread.start()
    for thread in closing:
        thread.join()


@contextlib.contextmanager
def _told(name: str) -> Iterator[None]:
    """Tell a client what the worker tells us."""
    try:
        yield
    except Full as full:
        seconds = max(1, math.ceil(full.retry_after))
        raise RequestError(429, f"{name}: {full}; try again in {seconds} s", {"Retry-After": str(seconds)}) from None
    except TooLarge as large:
        raise RequestError(413, f"{name}: {large}") from None
    except LateError as late:
        raise RequestError(504, f"{name}: {late}") from None
    except (HungError, StoppedError) as stopped:
        raise RequestError(503, str(stopped), {"Retry-After": "1"}) from None
