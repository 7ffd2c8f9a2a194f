"""
Jobs of an engine's thread: each is answered once, or fails, and keeps no images from then on.

Images are large. A reference cycle would keep them until the garbage collector runs, which in an idle server is never; so
nothing here may be part of one.
"""

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import accumulate

import numpy as np

from ddcat.engines import Engine, Outputs
from ddcat.engines.base import Images
from ddcat.engines.errors import EngineError
from ddcat_serve.inference.admission_queue import Item

__all__ = ["HungError", "Job", "LateError", "StoppedError", "fail", "infer_batch", "release", "set_result"]

_log = logging.getLogger(__name__)


class LateError(EngineError):
    """A request's deadline passed before it was computed."""


class HungError(EngineError):
    """The engine did not return, and was abandoned."""


class StoppedError(EngineError):
    """The worker accepts no requests: it is stopping, restarting its engine, or has none that works."""


@dataclass(eq=False)
class Job:
    """Images to be computed together, and their result: the engine's outputs for them."""

    item: Item  # its entry in the queue
    images: Images | None = None  # (N, H, W, C) uint8; None: not decoded yet, or released
    result: "Future[Outputs]" = field(default_factory=Future)


def infer_batch(engine: Engine, images: Sequence[Images]) -> list[Outputs | Exception]:
    """Compute a batch; return the outputs of each of its jobs, or the error for all of them."""
    try:
        whole = engine.infer(images[0] if len(images) == 1 else np.concatenate(images))
    except Exception as error:  # of any runtime: the client must get a response
        return [_without_frames(error)] * len(images)
    ends = list(accumulate(map(len, images)))
    return [whole.of(slice(end - len(part), end)) for part, end in zip(images, ends, strict=True)]


def _without_frames(error: Exception) -> Exception:
    """Remove the tracebacks of an error, which its job keeps: their frames hold the images."""
    if not isinstance(error, EngineError):  # its message is complete
        _log.error("the engine failed", exc_info=error)
    part: BaseException | None = error
    while part is not None:
        part.__traceback__ = None
        part = part.__cause__ or part.__context__
    return error


def set_result(job: Job, result: Outputs | Exception) -> None:
    """Set the result of a job; does nothing if it has one, or was cancelled."""
    release(job)
    if job.result.done() or not job.result.set_running_or_notify_cancel():
        return
    if isinstance(result, Exception):
        job.result.set_exception(result)
    else:
        job.result.set_result(result)


def release(job: Job) -> None:
    """Drop the job's images, and its reference cycle with the queue's item."""
    job.images = job.item.payload = None


def fail(jobs: Sequence[Job], error: Callable[[], Exception]) -> None:
    """Fail jobs, each with an error of its own: raising an error adds frames to it."""
    for job in jobs:
        set_result(job, error())
