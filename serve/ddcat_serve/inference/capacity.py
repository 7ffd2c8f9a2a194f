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

__all__ = ["Trial", "Turn", "most_pixels", "try_sizes"]

_MAX_SECONDS = 0.25  # nothing larger is tried after a call that took as long
_TURN_SECONDS = 0.0125  # the same beside engines that answer: what is tried next takes 4 times as long
_REPEATS = 3  # of each call beside others, of which the least time and the most memory count: others free memory meanwhile
_MAX_PIXELS = 2**21  # of the images that are tried, unless the only size has more
_STEP = 2  # ratio of the sides of successive sizes
_SAFETY_FACTOR = 1.1  # calls are expected to need so many times the measured memory
_PROPORTIONAL = 1.3  # growth up to this power counts as linear: memory of small images is mostly pages and alignment


Turn = Callable[[], AbstractContextManager[None]]


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
    turn: Turn | None = None,
) -> list[Trial]:
    """
    Run an engine on noise images of increasing size; return at least one trial, by increasing pixels.

    Nothing larger is tried after a call that took `_MAX_SECONDS`. Where other engines answer meanwhile, each call is made in a
    context of `turn`, since what they take would count as this one's, and the calls are shorter.
    """
    trials, entered = [], turn or nullcontext
    most_seconds, repeats = (_MAX_SECONDS, 1) if turn is None else (_TURN_SECONDS, _REPEATS)
    for height, width in _sizes(shapes):
        images = np.random.default_rng(0).integers(0, 256, (shapes.batch.minimum, height, width, channels)).astype(np.uint8)
        with entered():
            engine.infer(images)  # the first call with a new size prepares
        engine.rest()  # memory that it keeps would hide what the call takes
        costs = []
        for _ in range(repeats):
            with entered():
                costs.append(measure_cost(partial(engine.infer, images)))
            engine.rest()
        trials.append(
            Trial(math.prod(images.shape[:3]), min(cost.seconds for cost in costs), max(cost.bytes for cost in costs))
        )
        if trials[-1].seconds > most_seconds:
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
