"""Images that the rule of a bundle cuts: their tiles go through the queue one after another, as requests of others do."""

import math
import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError

import numpy as np
import numpy.typing as npt

from ddcat.engines import Outputs
from ddcat.engines.tiled import Read, TiledEngine, check_tile, joined, label_bands
from ddcat.tiles import Band, blend_bytes, tile_starts
from ddcat_serve.errors import RequestError
from ddcat_serve.inference.admission_queue import Overloaded
from ddcat_serve.inference.jobs import Job, LateError, StoppedError
from ddcat_serve.inference.memory import memory_limit
from ddcat_serve.inference.served_model import ServedModel, worker_errors_as_http
from ddcat_serve.settings import Settings

__all__ = ["QueuedInference", "admit_cut", "check_cut", "most_blend_bytes", "part_of"]

_BLEND_SHARE = 4  # a quarter of the memory is for the logits of all images that are being cut
_RETRY = 1.0  # seconds between two attempts to enter a full queue, at most

U8 = npt.NDArray[np.uint8]
Size = tuple[int, int]


def most_blend_bytes(settings: Settings) -> int:
    """Return how many bytes of logits may be kept while the tiles of one image are blended."""
    return memory_limit() // (_BLEND_SHARE * settings.codec_threads)


def admit_cut(model: ServedModel, size: Size, timeout: float, *, max_bytes: int) -> "QueuedInference":
    """
    Admit an image that is cut, before it is decoded, or refuse it; it is stopped when it is answered.

    `size` is its (height, width) as prepared for the graph, `timeout` are the seconds until the deadline, `max_bytes` the most
    bytes of logits that are kept while tiles are blended: RequestError (413) where there would be more. Other errors are those
    of `ServedModel.admit`.
    """
    tiles = check_cut(model, size, max_bytes=max_bytes)
    with worker_errors_as_http(model.name):
        model.worker.check(tiles, timeout, ahead=sum(list(model.planned.values())))
    admitted = QueuedInference(model, timeout=timeout, until=time.monotonic() + timeout)
    model.planned[admitted] = sum(count * height * width for count, (height, width) in tiles)
    return admitted


def check_cut(model: ServedModel, size: Size, *, max_bytes: int) -> list[tuple[int, Size]]:
    """Return number and size of the images in each call for an image that is cut; errors as `admit_cut`, but for the time."""
    manifest = model.bundle.manifest
    tiles, least = manifest.preprocessing.tiles, manifest.shapes.batch.minimum
    assert tiles is not None
    needed = blend_bytes(*size, tiles, len(model.classes))
    if needed > max_bytes:
        raise RequestError(
            413, f"{model.name}: the tiles of {size[1]} x {size[0]} pixels need {needed} bytes; expected at most {max_bytes}"
        )
    tile = check_tile(manifest, *size)
    down, across = (len(tile_starts(side, tiles)) for side in size)
    return [(least, tile)] * (down * -(-across // least))


class QueuedInference:
    """
    The engine of a model, for threads: it computes in its turn, and waits while the queue is full.

    Each call enters the queue behind what is there already, so a large image leaves others their share of the engine. A call is
    to be computed in `timeout` seconds, in the order of deadlines; calls fail after `until`, by the monotonic clock.
    """

    def __init__(self, model: ServedModel, *, timeout: float, until: float = math.inf) -> None:
        self._model, self._timeout, self._until = model, timeout, until
        self._stopped = threading.Event()
        self._job: Job | None = None  # the call in progress

    def bands(self, height: int, width: int, read: Read) -> Iterator[Band]:
        """Label an image, as prepared for the graph, band after band: see `ddcat.engines.tiled.label_bands`."""
        manifest = self._model.bundle.manifest
        cut = manifest.preprocessing.cuts(height, width)
        tiled = TiledEngine(self, manifest, corners=self._model.corners) if cut else None
        return label_bands(self, manifest, tiled, height, width, read)

    def outputs(self, pixels: U8) -> Outputs:
        """Label an image, (H, W, C) uint8, as prepared for the graph, and count the answer as one of the model's."""
        began, answer = time.monotonic(), None
        try:
            with worker_errors_as_http(self._model.name):
                height, width, _ = pixels.shape
                answer = joined(self.bands(height, width, part_of(pixels)))
        finally:
            self._model.usage.count_request(1, time.monotonic() - began, answered=answer is not None)
        self._model.monitor.observe(answer)
        return answer

    def __call__(self, images: U8) -> Outputs:
        """
        Compute images of one size, (N, H, W, C) uint8.

        LateError after `until`; StoppedError after `stop`, or where the model takes no requests any more; EngineError,
        TooLarge.
        """
        shadow = self._model.shadow
        while True:
            self._job = job = self._enter(images)
            try:
                outputs = job.result.result(self._left())
                break
            except (LateError, TimeoutError):
                self._left()  # raises at the end of the time for the whole image
            except CancelledError:
                raise StoppedError(f"{self._model.name} stopped") from None
            finally:
                self._model.release(job)
                # a reference cycle, with the images: an error keeps this frame, and the job keeps the error
                self._job = job = None  # type: ignore[assignment]
        if self in self._model.planned:
            self._model.planned[self] -= math.prod(images.shape[:3])
        if shadow is not None and shadow.choose():
            shadow.offer(images, outputs)
        return outputs

    def stop(self) -> None:
        """Let the call in progress, and all further ones, fail."""
        self._stopped.set()
        self._model.planned.pop(self, None)
        if (job := self._job) is not None:
            self._model.release(job)

    def _enter(self, images: U8) -> Job:
        while True:
            try:
                return self._model.worker.submit(images, self._timeout)
            except Overloaded as full:
                self._stopped.wait(min(full.retry_after, _RETRY, self._left() or _RETRY))

    def _left(self) -> float | None:
        """Return the seconds that are left, None: any number."""
        if self._stopped.is_set():
            raise StoppedError(f"{self._model.name}: the request was withdrawn")
        left = self._until - time.monotonic()
        if left <= 0:
            raise LateError("its timeout passed before all of its tiles were computed")
        return left if left < math.inf else None


def part_of(pixels: U8) -> Read:
    """Return what reads parts of an image that is in memory."""
    return lambda top, left, height, width: pixels[top : top + height, left : left + width]
