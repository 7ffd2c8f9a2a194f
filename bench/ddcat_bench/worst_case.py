"""Of several attacks on each image, the choice that is worst for the model."""

import numpy as np
import numpy.typing as npt

from ddcat.metrics import Counts

__all__ = ["lowest_accuracy", "worst_case"]

Choice = npt.NDArray[np.int64]  # (I,), of each image the index of an attack


def lowest_accuracy(counts: Counts) -> Choice:
    """
    Choose, for each image, the attack that leaves the fewest right pixels; the first of equal ones.

    `counts` (A, I, K, 3) int64 are of each attack on each image, as `ddcat.metrics.confusion_counts`.
    """
    choice: Choice = counts[..., 0].sum(-1).argmin(0)
    return choice


def worst_case(counts: Counts) -> Choice:
    """
    Choose an attack for each image so that the mIoU of the data set is low (Croce et al., 2024).

    Greedy: from the best single attack on, an image takes another attack whenever the mIoU of the whole falls by it, until
    no such swap is left. The result is never above that of the best single attack; a lower one may exist, for the images
    are not independent.

    Parameters
    ----------
    counts : (A, I, K, 3) int64
        Of each attack on each image, as `ddcat.metrics.confusion_counts`.

    Returns
    -------
    (I,) int64
        Of each image the index of an attack.
    """
    if counts.ndim != 4 or not len(counts):
        raise ValueError(f"counts are of (attacks, images, classes, 3), with an attack at least, not {counts.shape}")
    right, union = counts[..., 0], counts.sum(-1)  # (A, I, K)
    images = counts.shape[1]
    start = _miou(right.sum(1), union.sum(1)).argmin()
    choice = np.full(images, start)
    total_right, total_union = right[start].sum(0), union[start].sum(0)
    image, settled = 0, 0  # images in a row for which no swap helps
    while settled < images:
        present = choice[image]
        with_right = total_right + right[:, image] - right[present, image]  # (A, K): with each attack on this image
        with_union = total_union + union[:, image] - union[present, image]
        scores = _miou(with_right, with_union)
        best = scores.argmin()
        settled += 1
        if scores[best] < scores[present]:
            choice[image], total_right, total_union, settled = best, with_right[best], with_union[best], 1
        image = (image + 1) % images
    return choice


def _miou(right: npt.NDArray[np.int64], union: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Mean over the classes that are labelled or predicted, (..., K) -> (...); NaN where there is none."""
    present = (union > 0).sum(-1)
    mean = (right / np.maximum(union, 1)).sum(-1) / np.maximum(present, 1)
    return np.where(present > 0, mean, np.nan)
