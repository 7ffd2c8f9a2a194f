"""What an engine does before it serves: it runs each size, answers the golden images as it did, and shows how fast it is."""

import logging
import sys
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from ddcat.bundle import Bundle
from ddcat.engines import Engine
from ddcat.engines.base import Images
from ddcat.engines.golden import Example, check_answers
from ddcat.manifest import DimRange, InputShapes
from ddcat_serve.inference.capacity import Trial, try_sizes

__all__ = ["Pace", "measure_pace", "measure_speed", "warm_up"]

_PAYS = 0.95  # a batch of twice as many images pays where each takes at most this share of the time
_LONG = 0.2  # seconds for which each batch is timed, or one call
_log = logging.getLogger(__name__)


class Pace(NamedTuple):
    """
    How fast an engine is.

    Attributes
    ----------
    pixels_per_second : float
    batch_pixels : int
        That it computes at once; more of them would not be faster.
    """

    pixels_per_second: float
    batch_pixels: int


class WarmUp(NamedTuple):
    """
    What a warm-up found out.

    Attributes
    ----------
    pace : Pace
    call_overhead : float
        Seconds that the shortest call took.
    trials : list of Trial
        What calls of several sizes took.
    """

    pace: Pace
    call_overhead: float
    trials: list[Trial]


def warm_up(bundle: Bundle, engine: Engine, examples: Sequence[Example], *, tolerance: float, batch_pixels: int) -> WarmUp:
    """
    Check the answers, and time golden images and those of several sizes.

    Parameters
    ----------
    bundle : Bundle
    engine : Engine
        Of it.
    examples : sequence of Example
        Its golden images; where there are none, the largest that were tried tell the pace.
    tolerance : float
        Share of their labels that may differ.
    batch_pixels : int
        Most that are computed at once.

    Raises
    ------
    EngineError
        As `check_answers`.
    """
    check_answers(bundle, engine, examples, tolerance=tolerance)
    trials, batch = try_sizes(engine, bundle.manifest.shapes), bundle.manifest.shapes.batch
    if examples:
        pace = measure_pace(engine, examples[0].image, batch_pixels=batch_pixels, batch=batch)
    else:
        _log.warning("%s has no golden images: nobody knows whether it answers as it did when it was exported", bundle.path)
        pace = Pace(trials[-1].pixels / trials[-1].seconds, batch_pixels)
    return WarmUp(pace, min(trial.seconds for trial in trials), trials)


def measure_speed(
    engine: Engine,
    *,
    shapes: InputShapes,
    examples: Sequence[Example],
    batch_pixels: int,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """
    Measure anew, in few calls, how many pixels an engine computes in a second.

    Parameters
    ----------
    engine : Engine
    shapes : InputShapes
        That it takes.
    examples : sequence of Example
        As for `warm_up`; only the first is looked at.
    batch_pixels : int
        That it computes at once, as the warm-up found.
    clock : callable, optional
        In seconds, never going back.
    """
    if not examples:
        last = try_sizes(engine, shapes)[-1]
        return last.pixels / last.seconds
    image, batch = examples[0].image, shapes.batch
    pixels = image.size // 3
    images = max(batch.minimum, min(batch_pixels // pixels, batch.maximum or sys.maxsize))
    return pixels / _seconds_per_image(engine, image, images, clock)


def measure_pace(
    engine: Engine,
    image: Images,
    *,
    batch_pixels: int,
    batch: DimRange,
    clock: Callable[[], float] = time.perf_counter,
) -> Pace:
    """
    Double a batch as long as that pays: on a processor one image often fills it, and a batch would only be slower.

    Parameters
    ----------
    engine : Engine
    image : (H, W, 3) uint8
    batch_pixels : int
        Most that are tried, but for the smallest batch.
    batch : DimRange
        Images that the engine takes at once.
    clock : callable, optional
        In seconds, never going back.
    """
    height, width = image.shape[:2]
    images, seconds = batch.minimum, _seconds_per_image(engine, image, batch.minimum, clock)
    most = batch_pixels // (height * width)
    while 2 * images <= min(most, batch.maximum or most):
        doubled = _seconds_per_image(engine, image, 2 * images, clock)
        if doubled > _PAYS * seconds:
            return Pace(height * width / seconds, images * height * width)
        images, seconds = 2 * images, doubled
    return Pace(height * width / seconds, batch_pixels)


def _seconds_per_image(engine: Engine, image: Images, images: int, clock: Callable[[], float]) -> float:
    batch = np.repeat(image[None], images, 0)
    engine.infer(batch)  # of a new size, the first call prepares
    best, began = float("inf"), clock()
    while best == float("inf") or clock() - began < _LONG:
        start = clock()
        engine.infer(batch)
        best = min(best, clock() - start)
    return best / images
