"""Per-pixel cross-entropy, in which ignored pixels are exactly zero."""

import torch.nn.functional as F
from torch import Tensor

from ddcat.classes import IGNORE

__all__ = ["mean_over_valid", "pixel_cross_entropy"]


def pixel_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """
    Cross-entropy of each pixel.

    Parameters
    ----------
    logits : (N, K, H, W) float
    labels : (N, H, W) int64
        0..K-1, or 255 for an ignored pixel.

    Returns
    -------
    (N, H, W) float
        0 where the label is ignored.
    """
    return F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="none")


def mean_over_valid(values: Tensor, labels: Tensor) -> Tensor:
    """Sum of per-pixel values over the number of pixels that are not ignored; 0, not NaN, where there are none."""
    return values.sum() / (labels != IGNORE).sum().clamp(min=1)
