"""Warm-up of an engine: checks its golden answers, and measures its speed."""

import logging
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple, cast

import numpy as np

from ddcat.bundle import Bundle
from ddcat.engines import Engine, Outputs
from ddcat.engines.base import Images
from ddcat.engines.golden import Example, check_answers
from ddcat.manifest import DimRange, InputShapes
from ddcat_serve.inference.capacity import Trial, Turn, try_sizes
from ddcat_serve.settings import PREFIX

__all__ = ["Throughput", "Turn", "in_turns", "measure_speed", "measure_throughput", "warm_up"]

_MIN_GAIN = 0.95  # a doubled batch is used if the time per image falls to this share or below
_TIMING_SECONDS = 0.2  # for which each batch is timed, at least one call
_WAITING = 10  # times as long at most, with the waits for turns
_log = logging.getLogger(__name__)


class Throughput(NamedTuple):
    """Throughput of an engine, and the pixels per batch: larger batches would not be faster."""

    pixels_per_second: float
    batch_pixels: int


class WarmUp(NamedTuple):
    """Result of a warm-up: with time and memory of calls of several sizes."""

    throughput: Throughput
    call_overhead: float  # seconds of the shortest call
    trials: list[Trial]


def warm_up(
    bundle: Bundle,
    engine: Engine,
    examples: Sequence[Example],
    *,
    tolerance: float,
    batch_pixels: int,
    turn: Turn | None = None,
) -> WarmUp:
    """
    Check the golden answers of a bundle's engine, and measure throughput, overhead and memory.

    A share of labels, `tolerance`, may differ. Without golden images the throughput is that of the largest trial. A batch has
    at most `batch_pixels`. `turn` is that of `try_sizes`; errors are those of `check_answers`.
    """
    check_answers(bundle, in_turns(engine, turn), examples, tolerance=tolerance, hint=f" ({PREFIX}GOLDEN_TOLERANCE)")
    trials = try_sizes(
        engine,
        bundle.manifest.shapes,
        channels=bundle.manifest.preprocessing.channels,
        turn=turn,
    )
    if examples:
        throughput = measure_throughput(
            engine, examples[0].image, batch_pixels=batch_pixels, batch=bundle.manifest.shapes.batch, turn=turn
        )
    else:
        _log.warning("%s has no golden images: its answers cannot be compared with those at the export", bundle.path)
        throughput = Throughput(trials[-1].pixels / trials[-1].seconds, batch_pixels)
    return WarmUp(throughput, min(trial.seconds for trial in trials), trials)


class _InTurns:
    def __init__(self, engine: Engine, turn: Turn) -> None:
        self._engine, self._turn = engine, turn

    def infer(self, images: Images) -> Outputs:
        with self._turn():
            return self._engine.infer(images)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)


def in_turns(engine: Engine, turn: Turn | None) -> Engine:
    """Return the engine, each of whose calls is made in a context of its own, if there is one."""
    return engine if turn is None else cast(Engine, _InTurns(engine, turn))


def measure_speed(
    engine: Engine,
    *,
    shapes: InputShapes,
    examples: Sequence[Example],
    batch_pixels: int,
    channels: int = 3,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """
    Measure an engine's throughput again, in few calls, in pixels per second.

    `examples` are those of `warm_up`, of which only the first is used, and `batch_pixels` is its result. `clock` is in seconds
    and never goes back.
    """
    if not examples:
        last = try_sizes(engine, shapes, channels=channels)[-1]
        return last.pixels / last.seconds
    image, batch = examples[0].image, shapes.batch
    pixels = image[..., 0].size
    images = max(batch.minimum, min(batch_pixels // pixels, batch.maximum or sys.maxsize))
    return pixels / _seconds_per_image(engine, image, images, clock)


def measure_throughput(
    engine: Engine,
    image: Images,
    *,
    batch_pixels: int,
    batch: DimRange,
    clock: Callable[[], float] = time.perf_counter,
    turn: Turn | None = None,
) -> Throughput:
    """
    Double a batch as long as the time per image falls: on a CPU one image often saturates the cores.

    The image is (H, W, C) uint8. `batch_pixels` limits the batches tried, but the smallest is always tried; `batch` are the
    sizes that the engine accepts. `clock` is in seconds and never goes back; `turn` is that of `try_sizes`.
    """
    height, width = image.shape[:2]
    images, seconds = batch.minimum, _seconds_per_image(engine, image, batch.minimum, clock, turn)
    most = batch_pixels // (height * width)
    while 2 * images <= min(most, batch.maximum or most):
        doubled = _seconds_per_image(engine, image, 2 * images, clock, turn)
        if doubled > _MIN_GAIN * seconds:
            return Throughput(height * width / seconds, images * height * width)
        images, seconds = 2 * images, doubled
    return Throughput(height * width / seconds, batch_pixels)


def _seconds_per_image(
    engine: Engine, image: Images, images: int, clock: Callable[[], float], turn: Turn | None = None
) -> float:
    batch, entered = np.repeat(image[None], images, 0), turn or nullcontext
    with entered():
        engine.infer(batch)  # the first call with a new size prepares
    best, spent, began = float("inf"), 0.0, clock()
    while spent < _TIMING_SECONDS and clock() - began < _WAITING * _TIMING_SECONDS:
        with entered():
            start = clock()
            engine.infer(batch)
            seconds = clock() - start
        best, spent = min(best, seconds), spent + seconds
    return best / images
