"""Bootstrap over images: how much a figure depends on which ones were judged."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from ddcat.scores import Counts, iou

__all__ = ["BLOCK", "FEWEST_UNITS", "Scheme", "draw", "interval", "miou_of_draws", "scheme_of"]

BLOCK = 10  # frames that are drawn together
FEWEST_UNITS = 10  # clips, or blocks of frames: of fewer an interval says too little

_VIDEOS = {"camvid": "_"}  # data sets of video frames, and what ends the clip in the name of a frame

Kind = Literal["images", "clips", "blocks"]


class Scheme(NamedTuple):
    """
    What is drawn with replacement.

    Attributes
    ----------
    kind : "images", "clips" or "blocks"
        Images are drawn one by one; frames of video, which resemble their neighbours, by clip, or where there are few clips in
        circular blocks of frames that follow each other.
    groups : (I,) int64
        The clip of each image; its own place for the other kinds.
    block : int
        Frames in a block.
    """

    kind: Kind
    groups: npt.NDArray[np.int64]
    block: int = BLOCK

    @property
    def drawn(self) -> str:
        """What is drawn, in words."""
        return {"images": "images", "clips": "clips of frames", "blocks": f"circular blocks of {self.block} frames"}[self.kind]

    @property
    def units(self) -> int:
        """How many of what is drawn there are: of blocks, those that do not overlap."""
        return len(self.groups) // self.block if self.kind == "blocks" else len(np.unique(self.groups))


def scheme_of(data: str, names: Sequence[str]) -> Scheme:
    """
    Say how images of a data set are to be drawn.

    Parameters
    ----------
    data : str
        Name of the data set.
    names : sequence of str
        Of the images that were judged, in the order of the split.
    """
    places = np.arange(len(names))
    if data not in _VIDEOS:
        return Scheme("images", places)
    clips = [name.rpartition(_VIDEOS[data])[0] for name in names]
    groups = np.unique(clips, return_inverse=True)[1].astype(np.int64)
    many = len(set(clips)) >= FEWEST_UNITS
    return Scheme("clips", groups) if many else Scheme("blocks", places)


def draw(scheme: Scheme, *, draws: int, seed: int = 0) -> npt.NDArray[np.float64]:
    """
    Draw as many images as there are, again and again.

    Returns
    -------
    (draws, I) float64
        How often each image is in each draw: whole numbers, in the type whose matrix product is fast.
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

    Parameters
    ----------
    often : (D, I) float64
        Of `draw`.
    counts : (I, K, 3) int64

    Returns
    -------
    (D,) float64
        NaN where no pixel of a draw is counted.
    """
    images, classes, _ = counts.shape
    total = (often @ counts.reshape(images, -1).astype(np.float64)).reshape(-1, classes, 3)
    values = iou(total.astype(np.int64))  # (D, K)
    known = (~np.isnan(values)).sum(1)
    return np.where(known > 0, np.nansum(values, axis=1) / np.maximum(known, 1), np.nan)


def interval(counts: Counts, scheme: Scheme, *, level: float = 0.95, draws: int = 2000, seed: int = 0) -> tuple[float, float]:
    """
    Bound a data-set mIoU.

    It says nothing of what another training, or another start of the attack, would change.

    Parameters
    ----------
    counts : (I, K, 3) int64
        As `ddcat.scores.count`.
    scheme : Scheme
        How the images are drawn.
    level : float
        Share of the draws between the two bounds.
    draws, seed : int

    Returns
    -------
    (float, float)
        The quantiles (1 - level) / 2 and (1 + level) / 2 of the mIoU.
    """
    often = draw(scheme, draws=draws, seed=seed)
    low, high = np.nanquantile(miou_of_draws(often, counts), ((1 - level) / 2, (1 + level) / 2))
    return float(low), float(high)
