"""Per-pixel losses, in which ignored pixels are exactly zero."""

import torch.nn.functional as F
from torch import Tensor

from ddcat.classes import IGNORE

__all__ = ["pixel_cross_entropy", "pixel_divergence", "valid_pixels"]


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


def pixel_divergence(reference: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
    """
    Kullback-Leibler divergence KL(softmax(reference) || softmax(logits)) of each pixel, in nats.

    Parameters
    ----------
    reference, logits : (N, K, H, W) float
    labels : (N, H, W) int64
        Only whether they are 255 matters.

    Returns
    -------
    (N, H, W) float
        0 where the label is ignored.
    """
    expected = F.log_softmax(reference, 1)
    divergence = (expected.exp() * (expected - F.log_softmax(logits, 1))).sum(1)
    return divergence.masked_fill(labels == IGNORE, 0)


def valid_pixels(labels: Tensor) -> Tensor:
    """Count the pixels that are not ignored. () int64."""
    return (labels != IGNORE).sum()
