"""Calibration: how often labels are right whose confidence is so high."""

import numpy as np
import numpy.typing as npt

from ddcat.classes import IGNORE_INDEX

__all__ = ["BINS", "calibration_error", "count_reliability"]

BINS = 15  # of one width: (0, 1/15], (1/15, 2/15], ...

Reliability = npt.NDArray[np.float64]  # (BINS, 3): pixels, right ones, sum of their confidence


def count_reliability(
    labels: npt.NDArray[np.integer], predictions: npt.NDArray[np.integer], confidence: npt.NDArray[np.floating]
) -> Reliability:
    """
    Count pixels by their confidence, of one image or of several together; ignored ones do not count.

    Parameters
    ----------
    labels, predictions : integer arrays
        Of one shape.
    confidence : floating array
        Of that shape, in [0, 1]; NaN is none at all: 0.

    Returns
    -------
    (BINS, 3) float64
        Pixels, those of them whose prediction is right, and the sum of their confidence, in each bin. Counts of several images
        add up.
    """
    known = labels != IGNORE_INDEX
    sure = np.clip(np.nan_to_num(confidence[known].astype(np.float64)), 0, 1)
    place = np.clip(np.ceil(sure * BINS).astype(np.int64) - 1, 0, BINS - 1)
    columns = (None, (predictions[known] == labels[known]).astype(np.float64), sure)
    return np.stack([np.bincount(place, weights, BINS) for weights in columns], 1).astype(np.float64)


def calibration_error(counts: Reliability) -> float:
    """
    Return the expected calibration error: the distance of confidence and accuracy in a bin, on average over all pixels.

    In [0, 1]; NaN where no pixel was counted.
    """
    pixels = counts[:, 0].sum()
    return float(np.abs(counts[:, 1] - counts[:, 2]).sum() / pixels) if pixels else float("nan")
