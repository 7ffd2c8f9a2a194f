"""
Counts of correct and wrong pixels, and the metrics that are computed from them.

Counts are kept per image and class, so that every statistic (data-set mIoU, mean per-image mIoU, a bootstrap over images) can
be recomputed from a result file.
"""

import numpy as np
import numpy.typing as npt

from ddcat.classes import IGNORE_INDEX

__all__ = ["Counts", "confusion_counts", "iou", "miou", "pixel_accuracy"]

Counts = npt.NDArray[np.int64]  # (..., K, 3): true positives, false positives, false negatives


def confusion_counts(labels: npt.NDArray[np.integer], predictions: npt.NDArray[np.integer], classes: int) -> Counts:
    """
    Count true and false positives and false negatives, of one image or of several together.

    Parameters
    ----------
    labels : integer array
        Any shape; values in 0..classes-1, or 255, which is not counted, whatever the prediction.
    predictions : integer array
        Same shape; values in 0..classes-1.
    classes : int

    Returns
    -------
    (K, 3) int64
        True positives, false positives and false negatives of each class.
    """
    if labels.shape != predictions.shape:
        raise ValueError(f"labels {labels.shape} and predictions {predictions.shape} differ in shape")
    valid = labels != IGNORE_INDEX
    pairs = labels[valid].astype(np.int64) * classes + predictions[valid]
    confusion = np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)  # (label, prediction)
    right = confusion.diagonal()
    return np.stack([right, confusion.sum(0) - right, confusion.sum(1) - right], axis=1)


def iou(counts: Counts) -> npt.NDArray[np.float64]:
    """Return the intersection over union of each class, (..., K); NaN for a class that is neither labelled nor predicted."""
    union = counts.sum(-1)
    return np.where(union > 0, counts[..., 0] / np.maximum(union, 1), np.nan)


def miou(counts: Counts) -> float:
    """
    Return the mean intersection over union of (K, 3) counts, over the classes that are labelled or predicted anywhere.

    To score a data set, sum the counts over its images first. NaN when no pixel was counted.
    """
    values = iou(counts)
    present = values[~np.isnan(values)]
    return float(present.mean()) if present.size else float("nan")


def pixel_accuracy(counts: Counts) -> float:
    """Return the share of counted pixels that are correct, of (K, 3) counts; NaN when no pixel was counted."""
    right = counts[:, 0].sum()
    total = right + counts[:, 2].sum()
    return float(right / total) if total else float("nan")
