"""How much a data-set mIoU depends on which images were judged."""

import numpy as np

from ddcat.scores import Counts, iou

__all__ = ["interval"]

_DRAWS = 2000


def interval(counts: Counts, *, level: float = 0.95, draws: int = _DRAWS, seed: int = 0) -> tuple[float, float]:
    """
    Bootstrap over images: draw as many with replacement, sum their counts, and compute the mIoU anew.

    It says nothing of what another training, or another start of the attack, would change.

    Parameters
    ----------
    counts : (I, K, 3) int64
        As `ddcat.scores.count`.
    level : float
        Share of the draws between the two bounds.
    draws, seed : int

    Returns
    -------
    (float, float)
        The quantiles (1 - level) / 2 and (1 + level) / 2 of the mIoU.
    """
    images, classes, _ = counts.shape
    often = np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), size=draws)  # (draws, I)
    # float64 holds these whole numbers exactly, and its matrix product is the fast one
    total = (often.astype(np.float64) @ counts.reshape(images, -1).astype(np.float64)).reshape(draws, classes, 3)
    values = iou(total.astype(np.int64))  # (draws, K)
    known = (~np.isnan(values)).sum(1)
    drawn = np.nansum(values, axis=1)[known > 0] / known[known > 0]
    low, high = np.quantile(drawn, ((1 - level) / 2, (1 + level) / 2))
    return float(low), float(high)
