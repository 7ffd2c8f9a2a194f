"""A model that is served: its engine answers in batches, and its answers are monitored."""

import asyncio
import contextlib
import math
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

from starlette.requests import ClientDisconnect

from ddcat.bundle import Bundle
from ddcat.engines import Engine, Outputs
from ddcat.engines.base import Images
from ddcat.engines.checks import check_images, check_size
from ddcat.engines.golden import Example
from ddcat.passport import PassportStatus
from ddcat_serve.errors import RequestError
from ddcat_serve.inference.admission_queue import Overloaded, TooLarge
from ddcat_serve.inference.engine_worker import EngineWorker
from ddcat_serve.inference.jobs import HungError, Job, LateError, StoppedError
from ddcat_serve.inference.shadow import Shadow
from ddcat_serve.observe.drift_monitor import DriftMonitor
from ddcat_serve.observe.usage import Usage

__all__ = ["ServedModel", "worker_errors_as_http"]


class ServedModel:
    """
    A version of a model: its worker owns its engine, and a monitor evaluates its answers.

    The files of its bundle are not needed any more and may be empty. `passport` is the gate's verdict on it. `examples` are its
    golden images, if the server may show them. `corners` says how its graph enlarges logits, if its bundle has a rule for
    tiles: see `ddcat.engines.tiled.TiledEngine`.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        name: str,
        version: str,
        passport: PassportStatus,
        worker: EngineWorker,
        examples: tuple[Example, ...] = (),
        monitor: DriftMonitor | None = None,
        corners: bool | None = None,
    ) -> None:
        self.bundle, self.name, self.version = bundle, name, version
        self.passport, self.worker, self.examples = passport, worker, examples
        self.corners = corners
        self.planned: dict[object, int] = {}  # pixels of tiles that requests have still to queue, by whom
        self.classes = bundle.manifest.class_table()
        self.monitor = monitor or DriftMonitor(len(self.classes))
        self.usage = Usage()
        self.shadow: Shadow | None = None  # a candidate for its place, which computes some of its requests

    @property
    def engine(self) -> Engine:
        """The current engine, for its description; requests go through `infer`."""
        return self.worker.engine

    @property
    def ready(self) -> bool:
        """Whether it accepts requests."""
        return self.worker.state == "ready"

    def describe(self) -> dict[str, Any]:
        """Return its origin, signer and passport, for JSON."""
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
            "abstention": None if manifest.abstention is None else manifest.abstention.model_dump(mode="json"),
            "orientation": manifest.preprocessing.orientation,
            "tiles": None if manifest.preprocessing.tiles is None else manifest.preprocessing.tiles.model_dump(),
            "classes": [entry.model_dump(mode="json") for entry in manifest.classes],
        }

    def admit(self, images: Sequence[tuple[int, tuple[int, int]]], timeout: float) -> list[Job]:
        """
        Queue images by their sizes, all of them or none, before they are decoded; each job is then passed to `infer` or
        `release`.

        A request that would be refused later is refused here, before any work is done for it. `images` are number and (height,
        width) of the images of each job, `timeout` are the seconds until the deadline.

        InputError if the engine does not accept such images. RequestError: 413 if the engine could never answer in time, 429
        with Retry-After if it cannot now, 503 if the model accepts no requests, 504 if the deadline has passed.
        """
        for count, size in images:
            check_size(count, *size, self.bundle.manifest.shapes)
        with worker_errors_as_http(self.name):
            return self.worker.admit(images, timeout)

    def release(self, job: Job) -> None:
        """Remove a job from the queue, if it is still there."""
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
        Queue images, (N, H, W, C) uint8, and return their labels.

        They have a place in the queue, `job`, or a `timeout` in seconds until the deadline. `gone` returns an awaitable that
        ends when the client disconnects: the images then leave the queue, and ClientDisconnect is raised. Other errors are
        those of `admit`.
        """
        check_images(images, self.bundle.manifest.shapes, self.bundle.manifest.preprocessing.channels)
        began, outputs, count = time.monotonic(), None, len(images)
        shadow = self.shadow
        shadowed = images if shadow is not None and shadow.choose() else None
        try:
            with worker_errors_as_http(self.name):
                if job is None:
                    job = self.worker.submit(images, timeout)
                else:
                    self.worker.start(job, images)
                del images  # the traceback of an error would keep this frame, and the images in it
                outputs = await self._wait(job, gone)
            if shadow is not None and shadowed is not None:
                shadow.offer(shadowed, outputs)
        finally:
            self.usage.count_request(count, time.monotonic() - began, answered=outputs is not None)
            del job, shadowed  # as above
        self.monitor.observe(outputs)
        return outputs

    def close(self, timeout: float) -> None:
        """Answer the queued requests, and free the engine; requests left after `timeout` seconds fail."""
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
                result.exception()  # asyncio would report it as never retrieved if the request was cancelled meanwhile
            del either, result, job  # a reference cycle: an error keeps this frame, and they keep the error


@contextlib.contextmanager
def worker_errors_as_http(name: str) -> Iterator[None]:
    """Translate errors of the worker into HTTP statuses."""
    try:
        yield
    except Overloaded as overloaded:
        seconds = max(1, math.ceil(overloaded.retry_after))
        raise RequestError(429, f"{name}: {overloaded}; try again in {seconds} s", {"Retry-After": str(seconds)}) from None
    except TooLarge as large:
        raise RequestError(413, f"{name}: {large}") from None
    except LateError as late:
        raise RequestError(504, f"{name}: {late}") from None
    except (HungError, StoppedError) as stopped:
        raise RequestError(503, str(stopped), {"Retry-After": "1"}) from None
