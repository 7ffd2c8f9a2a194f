"""
Equivalence test (TOST) of an engine and its PyTorch model on the same images: a paired bootstrap and two one-sided tests.

The difference of two scores on the same images varies far less than either score: separate intervals would show nothing.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ddcat.metrics import Counts, iou, miou
from ddcat.passport import Verdict
from ddcat_bench.bootstrap import BLOCK, FEWEST_UNITS, Scheme, draw, miou_of_draws
from ddcat_bench.markdown import signed
from ddcat_bench.worst_case import worst_case

__all__ = ["KEPT_AT_LEAST", "Comparison", "Interval", "compare_pool", "paired_interval", "verdict_of"]

KEPT_AT_LEAST = 10.0  # points of mIoU; of a model that keeps less there is nothing to preserve
_LEVEL = 0.90  # two one-sided tests of 5 % each
_DRAWS = 10_000
_OTHER_BLOCKS = (5, 20)


class Interval(NamedTuple):
    """Bounds of engine minus reference, in points of mIoU."""

    low: float
    high: float


class Comparison(NamedTuple):
    """An engine beside its PyTorch model under one threat."""

    reference: float  # points of mIoU, each under the attacks that are worst for it
    engine: float
    difference: float  # engine minus reference
    interval: Interval  # 90 % of the draws
    by_block: dict[int, Interval]  # the same for other lengths of the blocks of frames; empty where images or clips are drawn
    # (K, 2) float64: in points, of the reference and of the engine; NaN for a class that is in no image
    class_iou: npt.NDArray[np.float64]


def paired_interval(
    reference: Counts, engine: Counts, scheme: Scheme, *, level: float = _LEVEL, draws: int = _DRAWS, seed: int = 0
) -> Interval:
    """
    Bound the difference of two data-set mIoUs: both are computed anew on each draw of the same images.

    The counts are (I, K, 3) int64, of the same images in the same order. A share `level` of the draws lies between the bounds,
    which are in points, engine minus reference.
    """
    if reference.shape != engine.shape or len(reference) != len(scheme.groups):
        raise ValueError(f"counts {reference.shape} and {engine.shape} are not of the same {len(scheme.groups)} images")
    often = draw(scheme, draws=draws, seed=seed)
    differences = 100 * (miou_of_draws(often, engine) - miou_of_draws(often, reference))
    low, high = np.nanquantile(differences, ((1 - level) / 2, (1 + level) / 2))
    return Interval(float(low), float(high))


def compare_pool(reference: Counts, engine: Counts, scheme: Scheme, *, draws: int = _DRAWS, seed: int = 0) -> Comparison:
    """
    Compare under the worst case over a shared pool of images: each of the two meets, of every image, what is worst for it.

    The counts are (A, I, K, 3) int64, of each member of the pool on the same images. The choice is made once, on all images,
    and stays the same in every draw.
    """
    places = np.arange(reference.shape[1])
    first, second = (counts[worst_case(counts), places] for counts in (reference, engine))
    score, other = (100 * miou(counts.sum(0)) for counts in (first, second))
    blocks = (size for size in _OTHER_BLOCKS if scheme.kind == "blocks" and size <= len(places))
    return Comparison(
        reference=score,
        engine=other,
        difference=other - score,
        interval=paired_interval(first, second, scheme, draws=draws, seed=seed),
        by_block={size: paired_interval(first, second, scheme._replace(block=size), draws=draws, seed=seed) for size in blocks},
        class_iou=np.stack([100 * iou(counts.sum(0)) for counts in (first, second)], 1),
    )


def verdict_of(comparison: Comparison, scheme: Scheme, *, margin: float) -> tuple[Verdict, str]:
    """Decide between equal but for a margin in points of mIoU, worse by more, and not known; and say why in a sentence."""
    low, high = comparison.interval
    bounds = f"the 90 % interval of the difference, {signed(low)} to {signed(high)} points,"
    if not np.isfinite([comparison.difference, low, high]).all():
        return "refuse", "the difference is not a finite number"
    if scheme.units < FEWEST_UNITS:
        noun, verb = scheme.kind[:-1] + "s" * (scheme.units != 1), "is" if scheme.units == 1 else "are"
        what = f"{noun} of {BLOCK} frames" if scheme.kind == "blocks" else noun
        return "inconclusive", f"{scheme.units} {what} {verb} too few to decide: use {FEWEST_UNITS} or more"
    if high < -margin:
        return "refuse", f"{bounds} lies below the limit -{margin:g}: the engine is worse"
    if -margin <= low and high <= margin:
        return "pass", f"{bounds} lies within the limits -{margin:g} and +{margin:g}"
    if low > margin:
        return (
            "inconclusive",
            f"{bounds} lies above the limit +{margin:g}: an engine that scores higher than its PyTorch model is "
            "not equivalent to it: check for gradient masking",
        )
    crossed = [text for text, beyond in ((f"-{margin:g}", low < -margin), (f"+{margin:g}", high > margin)) if beyond]
    limits = f"the limit{'s' * (len(crossed) - 1)} {' and '.join(crossed)}"
    return "inconclusive", f"{bounds} crosses {limits}: use more images, or a wider margin"
