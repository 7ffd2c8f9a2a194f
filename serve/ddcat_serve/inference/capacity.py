"""
Most pixels of an engine's call that fit into memory, extrapolated from smaller calls.

At the start, images of increasing size are tried until one takes a quarter of a second. The memory of larger ones is
extrapolated from the last two: in proportion to their pixels, or by a higher power if it grew faster, as with attention.
"""

import math
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import NamedTuple

import numpy as np

from ddcat.engines import Engine
from ddcat.manifest import InputShapes
from ddcat_serve.inference.memory import measure_cost

__all__ = ["MAX_SECONDS", "Trial", "most_pixels", "try_sizes"]

MAX_SECONDS = 0.25  # nothing larger is tried after a call that took as long
_MAX_PIXELS = 2**21  # of the images that are tried, unless the only size has more
_STEP = 2  # ratio of the sides of successive sizes
_SAFETY_FACTOR = 1.1  # calls are expected to need so many times the measured memory
_PROPORTIONAL = 1.3  # growth up to this power counts as linear: memory of small images is mostly pages and alignment


class Trial(NamedTuple):
    """Time and memory of a call with so many pixels."""

    pixels: int
    seconds: float
    bytes: int


def try_sizes(
    engine: Engine,
    shapes: InputShapes,
    *,
    channels: int = 3,
    max_seconds: float = MAX_SECONDS,
    repeats: int = 1,
    turn: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> list[Trial]:
    """
    Run an engine on noise images of increasing size.

    Parameters
    ----------
    engine : Engine
    shapes : InputShapes
        InputShapes that it accepts.
    channels : int
        Of an image.
    max_seconds : float, optional
        Nothing larger is tried after a call that took as long.
    repeats : int, optional
        Calls with each size; the least time and the most memory of them count.
    turn : callable, optional
        Returns a context for each call: what other engines take meanwhile would count as this one's.

    Returns
    -------
    list of Trial
        At least one, by increasing pixels.
    """
    trials = []
    for height, width in _sizes(shapes):
        images = np.random.default_rng(0).integers(0, 256, (shapes.batch.minimum, height, width, channels)).astype(np.uint8)
        with turn():
            engine.infer(images)  # the first call with a new size prepares
        engine.rest()  # memory that it keeps would hide what the call takes
        costs = []
        for _ in range(repeats):
            with turn():
                costs.append(measure_cost(partial(engine.infer, images)))
            engine.rest()
        trials.append(
            Trial(math.prod(images.shape[:3]), min(cost.seconds for cost in costs), max(cost.bytes for cost in costs))
        )
        if trials[-1].seconds > max_seconds:
            break
    return trials


def most_pixels(trials: Sequence[Trial], most_bytes: float) -> int:
    """Return how many pixels a call may have within so many bytes; at least as many as the first trial."""
    last = trials[-1]
    if last.bytes <= 0:
        return sys.maxsize  # it uses no host memory, or the system does not report it
    power = 1.0
    if len(trials) > 1 and trials[-2].bytes > 0:
        power = math.log(last.bytes / trials[-2].bytes) / math.log(last.pixels / trials[-2].pixels)
    reach = max(0.0, most_bytes / (_SAFETY_FACTOR * last.bytes)) ** (1 / power if power > _PROPORTIONAL else 1.0)
    return max(trials[0].pixels, int(last.pixels * reach))


def _sizes(shapes: InputShapes) -> list[tuple[int, int]]:
    """Return the smallest size, then twice its sides and so on; of a list of sizes the smallest and the largest."""
    if shapes.sizes is not None:
        return sorted({shapes.sizes[0], shapes.sizes[-1]}, key=math.prod)
    height, width = shapes.height.minimum, shapes.width.minimum
    sizes = [(height, width)]
    while True:
        height = min(_STEP * height, shapes.height.maximum or _STEP * height)
        width = min(_STEP * width, shapes.width.maximum or _STEP * width)
        if (height, width) == sizes[-1] or shapes.batch.minimum * height * width > _MAX_PIXELS:
            return sizes
        sizes.append((height, width))
