"""A model that computes a share of the requests beside the one that answers them, so that both can be compared."""

import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ddcat.engines import Outputs
from ddcat.engines.base import Images
from ddcat.engines.errors import InputError
from ddcat_serve.errors import RequestError

if TYPE_CHECKING:
    from ddcat_serve.inference.served_model import ServedModel

__all__ = ["Shadow", "ShadowReport"]

_AT_ONCE = 4  # requests in the shadow's queue; further ones are skipped, so that it never holds many images
_TIMEOUT = 10.0  # seconds until the deadline of a request in it


class ShadowReport(NamedTuple):
    """What both models made of the same images."""

    images: int  # that both computed
    pixels: int  # of these images
    equal: int  # of these pixels, those with equal labels
    skipped: int  # images that were chosen while the shadow was busy
    failed: int  # images that the shadow does not take, or failed on
    seconds: float | None  # per image in its engine; None: no image yet
    seconds_before: float | None  # the same of the model that answers, meanwhile

    def __str__(self) -> str:
        beside = f"{self.skipped} skipped, {self.failed} failed"
        if not self.pixels or self.seconds is None or self.seconds_before is None:
            return f"no image was compared yet, {beside}"
        times = f"{1000 * self.seconds:.3g} ms an image in the engine, {1000 * self.seconds_before:.3g} ms in the other"
        return f"{self.equal / self.pixels:.4%} equal labels in {self.images} images ({beside}), {times}"


class Shadow:
    """
    Compares a candidate with the model that answers; its answers reach no client.

    The candidate is warmed up, and in no table of models. It computes a `share` of the requests as well, in (0, 1].
    """

    def __init__(self, candidate: "ServedModel", answering: "ServedModel", share: float) -> None:
        self.candidate, self._share, self._due = candidate, share, 0.0
        self._answering = answering
        self._images_before, self._seconds_before = answering.usage.engine_time()
        self._lock = threading.Lock()
        self._running = self._images = self._pixels = self._equal = self._skipped = self._failed = 0

    def choose(self) -> bool:
        """Return whether the next request is one that both compute: they are spread evenly."""
        with self._lock:
            self._due += self._share
            chosen = self._due >= 1
            self._due -= chosen
            return chosen

    def offer(self, images: Images, answered: Outputs) -> None:
        """Compute images, (N, H, W, C) uint8, that were answered, and compare the labels when they are there."""
        with self._lock:
            if self._running >= _AT_ONCE:
                self._skipped += len(images)
                return
            self._running += 1
        try:
            [job] = self.candidate.admit([(len(images), images.shape[1:3])], _TIMEOUT)
        except (InputError, RequestError) as refused:
            with self._lock:
                self._running -= 1
                if isinstance(refused, RequestError) and refused.status == 429:
                    self._skipped += len(images)
                else:
                    self._failed += len(images)
            return
        labels = answered.labels
        job.result.add_done_callback(lambda done: self._compare(labels, done))
        self.candidate.worker.start(job, images)

    def _compare(self, labels: Images, done: "Future[Outputs]") -> None:
        """Count equal labels; runs in the thread of the candidate's engine."""
        failed = done.cancelled() or done.exception() is not None
        equal = 0 if failed else int(np.count_nonzero(done.result().labels == labels))
        with self._lock:
            self._running -= 1
            if failed:
                self._failed += len(labels)
            else:
                self._images, self._pixels, self._equal = (
                    self._images + len(labels), self._pixels + labels.size, self._equal + equal,
                )  # fmt: skip

    def report(self) -> ShadowReport:
        """Return what was compared so far."""
        images, seconds = self.candidate.usage.engine_time()
        before, seconds_before = self._answering.usage.engine_time()
        before, seconds_before = before - self._images_before, seconds_before - self._seconds_before
        with self._lock:
            return ShadowReport(
                self._images, self._pixels, self._equal, self._skipped, self._failed,
                seconds / images if images else None, seconds_before / before if before else None,
            )  # fmt: skip
