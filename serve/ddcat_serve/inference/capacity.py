"""
What one call of an engine may be given: as many pixels as there is memory for, by what smaller calls took.

Larger and larger images are tried at the start, up to some that take a quarter of a second. What still larger ones would take
is computed from the last two: in proportion to their pixels, or more where it grew more, as it does with attention.
"""

import math
import sys
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from ddcat.engines import Engine
from ddcat.manifest import InputShapes
from ddcat_serve.inference.memory import cost_of

__all__ = ["Trial", "most_pixels", "try_sizes"]

_LONG = 0.25  # seconds; nothing larger is tried after a call that took as long
_LARGEST = 2**21  # pixels that are tried, where no single size has more
_STEP = 2  # between the sides of one image and the next
_CAUTION = 1.1  # calls are taken to need so many times as much memory as was measured
_PROPORTIONAL = 1.3  # powers of growth up to this one are taken for 1: the memory of small images is mostly pages and alignment


class Trial(NamedTuple):
    """What a call with images of so many pixels took."""

    pixels: int
    seconds: float
    bytes: int


def try_sizes(engine: Engine, shapes: InputShapes) -> list[Trial]:
    """
    Give an engine larger and larger images, of noise.

    Parameters
    ----------
    engine : Engine
    shapes : InputShapes
        That it takes.

    Returns
    -------
    list of Trial
        At least one, in the order of their pixels.
    """
    trials = []
    for height, width in _sizes(shapes):
        images = np.random.default_rng(0).integers(0, 256, (shapes.batch.minimum, height, width, 3)).astype(np.uint8)
        engine.infer(images)  # of a new size, the first call prepares
        engine.rest()  # what is kept would hide what the call takes
        trials.append(Trial(images.size // 3, *cost_of(partial(engine.infer, images))))
        if trials[-1].seconds > _LONG:
            break
    engine.rest()
    return trials


def most_pixels(trials: Sequence[Trial], most_bytes: float) -> int:
    """Compute how many pixels a call may have that may take so much memory; never fewer than the first trial."""
    last = trials[-1]
    if last.bytes <= 0:
        return sys.maxsize  # it takes none of the host's, or the system does not say
    power = 1.0
    if len(trials) > 1 and trials[-2].bytes > 0:
        power = math.log(last.bytes / trials[-2].bytes) / math.log(last.pixels / trials[-2].pixels)
    reach = max(0.0, most_bytes / (_CAUTION * last.bytes)) ** (1 / power if power > _PROPORTIONAL else 1.0)
    return max(trials[0].pixels, int(last.pixels * reach))


def _sizes(shapes: InputShapes) -> list[tuple[int, int]]:
    """The smallest size, and twice and four times its sides and so on; or of a ladder the smallest and the largest."""
    if shapes.sizes is not None:
        return sorted({shapes.sizes[0], shapes.sizes[-1]}, key=math.prod)
    height, width = shapes.height.minimum, shapes.width.minimum
    sizes = [(height, width)]
    while True:
        height = min(_STEP * height, shapes.height.maximum or _STEP * height)
        width = min(_STEP * width, shapes.width.maximum or _STEP * width)
        if (height, width) == sizes[-1] or shapes.batch.minimum * height * width > _LARGEST:
            return sizes
        sizes.append((height, width))
