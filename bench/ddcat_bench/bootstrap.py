"""Bootstrap over images: how much a figure depends on which ones were evaluated."""

import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from ddcat.clips import BLOCK, FEWEST_UNITS, SEQUENCES, UnitKind, grouped
from ddcat.errors import DdcatError
from ddcat.metrics import Counts, iou
from ddcat_bench.errors import BenchError

if TYPE_CHECKING:
    from ddcat_train.data import Dataset  # of results, tables are made without what reads images

__all__ = ["BLOCK", "FEWEST_UNITS", "Scheme", "check_clips", "draw", "interval", "miou_of_draws", "scheme_of", "sequence_in"]

_SINGLE = {"scenes": r".+", "cityscapes": r".+", "voc": r"\d{4}_\d{6}"}  # names of images of which none is another's neighbour
_NEAR = 30  # frames: a second of video
_NUMBER = re.compile(r"\d+(?=\D*$)")


class Scheme(NamedTuple):
    """What is drawn with replacement."""

    # images are drawn one by one; frames of video, which resemble their neighbours, by clip; those of CamVid, where there are
    # few clips, in circular blocks of frames that follow each other
    kind: UnitKind
    groups: npt.NDArray[np.int64]  # (I,) int64: the clip of each image; its own place for the other kinds
    block: int = BLOCK  # frames in a block

    @property
    def unit_name(self) -> str:
        """Name of the drawn unit."""
        return {"images": "images", "clips": "clips of frames", "blocks": f"circular blocks of {self.block} frames"}[self.kind]

    @property
    def units(self) -> int:
        """Number of drawn units; blocks that do not overlap."""
        return len(self.groups) // self.block if self.kind == "blocks" else len(np.unique(self.groups))


def scheme_of(data: str, names: Sequence[str], clips: str | None = None) -> Scheme:
    """
    Choose how images of a data set are drawn; the parameters are those of `ddcat.clips.grouped`.

    Raises BenchError where that refuses the expression.
    """
    try:
        return Scheme(*grouped(data, names, clips))
    except DdcatError as cause:
        raise BenchError(str(cause)) from cause


def check_clips(dataset: "Dataset") -> None:
    """
    Refuse an expression for clips that does not fit the images, before the long work whose result it is for.

    Raises BenchError.
    """
    scheme_of(dataset.name, [pair.name for pair in dataset.pairs], dataset.clips)


def sequence_in(data: str, names: Sequence[str], clips: str | None = None) -> tuple[str, str] | None:
    """
    Look for file names that differ by a number alone, as those of the frames of a video do, where nothing says what they are.

    Returns two of the names where most have such neighbours, else None.
    """
    single = _SINGLE.get(data)
    if clips is not None or data in SEQUENCES or (single and all(re.fullmatch(single, name) for name in names)):
        return None
    series: dict[str, list[tuple[int, str]]] = {}
    for name in names:
        if (number := _NUMBER.search(name)) is not None:
            series.setdefault(_NUMBER.sub("#", name), []).append((int(number[0]), name))
    frames = [sorted(one) for one in series.values() if _close(sorted(number for number, _ in one))]
    if sum(map(len, frames)) <= len(names) / 2:
        return None
    (_, first), (_, second), *_ = max(frames, key=len)
    return first, second


def _close(numbers: Sequence[int]) -> bool:
    """Return True if sorted numbers follow each other like frame numbers: at one distance, or at small ones."""
    steps = [after - before for before, after in pairwise(numbers)]
    return bool(steps) and (median(steps) <= _NEAR or Counter(steps).most_common(1)[0][1] > len(steps) / 2)


def draw(scheme: Scheme, *, draws: int, seed: int = 0) -> npt.NDArray[np.float64]:
    """
    Draw as many images as there are, again and again.

    Returns (draws, I) float64: number of times that each image is in each draw: whole numbers, in the type whose matrix product
    is fast.
    """
    random, images = np.random.default_rng(seed), len(scheme.groups)
    if scheme.kind == "blocks":
        blocks = -(-images // scheme.block)
        starts = random.integers(0, images, (draws, blocks))
        places = (starts[:, :, None] + np.arange(scheme.block)).reshape(draws, -1)[:, :images] % images
        rows = np.arange(draws)[:, None] * images
        return np.bincount((places + rows).ravel(), minlength=draws * images).reshape(draws, images).astype(np.float64)
    units = scheme.units
    often = random.multinomial(units, np.full(units, 1 / units), size=draws)  # (draws, units)
    return often[:, scheme.groups].astype(np.float64)


def miou_of_draws(often: npt.NDArray[np.float64], counts: Counts) -> npt.NDArray[np.float64]:
    """
    Compute the data-set mIoU of each draw: counts summed first, classes that are in none of its images left out.

    `often` (D, I) is the result of `draw`, `counts` (I, K, 3) int64. Returns (D,) float64, NaN where no pixel of a draw is
    counted.
    """
    images, classes, _ = counts.shape
    total = (often @ counts.reshape(images, -1).astype(np.float64)).reshape(-1, classes, 3)
    values = iou(total.astype(np.int64))  # (D, K)
    known = (~np.isnan(values)).sum(1)
    return np.where(known > 0, np.nansum(values, axis=1) / np.maximum(known, 1), np.nan)


def interval(counts: Counts, scheme: Scheme, *, level: float = 0.95, draws: int = 2000, seed: int = 0) -> tuple[float, float]:
    """
    Bound a data-set mIoU of counts (I, K, 3) int64 by the quantiles (1 - level) / 2 and (1 + level) / 2 of the draws.

    It says nothing of what another training, or another start of the attack, would change.
    """
    often = draw(scheme, draws=draws, seed=seed)
    low, high = np.nanquantile(miou_of_draws(often, counts), ((1 - level) / 2, (1 + level) / 2))
    return float(low), float(high)
