"""
Requests in the hands of an engine's thread: each is answered once, or fails, and keeps none of its images from then on.

Images are large, and a circle of objects lives until the garbage collector looks for it, which it never does in a server that
is idle: so nothing here may be part of one.
"""

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np

from ddcat.engines import Engine, Outputs
from ddcat.engines.base import Images
from ddcat.engines.errors import EngineError
from ddcat_serve.inference.admission_queue import Item

__all__ = ["HungError", "Job", "LateError", "StoppedError", "answer", "end", "fail", "infer"]

_log = logging.getLogger(__name__)


class LateError(EngineError):
    """The time of a request was over before its turn came."""


class HungError(EngineError):
    """The engine did not come back, and was given up."""


class StoppedError(EngineError):
    """The worker takes no requests: it is stopping, restarting its engine, or has no engine that works."""


@dataclass(eq=False)
class Job:
    """
    A request in the worker's hands.

    Attributes
    ----------
    item : Item
        Its place in the queue.
    images : (N, H, W, 3) uint8, or None
        None: not there yet, or not needed any more.
    result : Future of Outputs
        What the engine says of its images.
    """

    item: Item
    images: Images | None = None
    result: "Future[Outputs]" = field(default_factory=Future)


def infer(engine: Engine, images: Sequence[Images]) -> list[Outputs | Exception]:
    """Give the outputs of each request of a batch, or for all of them why it failed."""
    try:
        whole = engine.infer(images[0] if len(images) == 1 else np.concatenate(images))
    except Exception as error:  # of any runtime: whoever waits must be told
        return [_without_frames(error)] * len(images)
    found: list[Outputs | Exception] = []
    first = 0
    for part in images:
        place = slice(first, first := first + len(part))
        found.append(
            Outputs(
                labels=whole.labels[place],
                logits=None if whole.logits is None else whole.logits[place],
                confidence=None if whole.confidence is None else whole.confidence[place],
            )
        )
    return found


def _without_frames(error: Exception) -> Exception:
    """Let an error, which its request keeps, keep no frames of what raised it: the images are in them."""
    if not isinstance(error, EngineError):  # whose message says all
        _log.error("the engine failed", exc_info=error)
    part: BaseException | None = error
    while part is not None:
        part.__traceback__ = None
        part = part.__cause__ or part.__context__
    return error


def answer(job: Job, result: Outputs | Exception) -> None:
    """Give a request its result; nothing where it has one, or its client has gone."""
    end(job)
    if job.result.done() or not job.result.set_running_or_notify_cancel():
        return
    if isinstance(result, Exception):
        job.result.set_exception(result)
    else:
        job.result.set_result(result)


def end(job: Job) -> None:
    """Let go of its images, and of the queue's item, which knows it."""
    job.images = job.item.payload = None


def fail(jobs: Sequence[Job], error: Callable[[], Exception]) -> None:
    """Let requests fail, each by an error of its own: whoever raises it adds frames to it."""
    for job in jobs:
        answer(job, error())
