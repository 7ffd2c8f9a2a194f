"""Per-pixel losses, in which ignored pixels are exactly zero."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ddcat.classes import IGNORE_INDEX

__all__ = ["pixel_cross_entropy", "pixel_divergence", "valid_pixels"]


def pixel_cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """
    Compute the cross-entropy of each pixel.

    Parameters
    ----------
    logits : (N, K, H, W) float
    labels : (N, H, W) int64
        0..K-1, or 255 for an ignored pixel.
    weights : (K,) float, optional
        Weight of each class: a pixel counts with that of its label.

    Returns
    -------
    (N, H, W) float
        0 where the label is ignored.
    """
    return F.cross_entropy(logits, labels, weights, ignore_index=IGNORE_INDEX, reduction="none")


def pixel_divergence(reference: Tensor, logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """
    Compute the Kullback-Leibler divergence KL(softmax(reference) || softmax(logits)) of each pixel, in nats.

    Parameters
    ----------
    reference, logits : (N, K, H, W) float
    labels : (N, H, W) int64
        Used to find ignored pixels (255), and for the weights.
    weights : (K,) float, optional
        As for `pixel_cross_entropy`.

    Returns
    -------
    (N, H, W) float
        0 where the label is ignored.
    """
    expected = F.log_softmax(reference, 1)
    divergence = (expected.exp() * (expected - F.log_softmax(logits, 1))).sum(1)
    divergence = divergence.masked_fill(labels == IGNORE_INDEX, 0)
    return divergence if weights is None else divergence * _of_pixels(labels, weights)


def valid_pixels(labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """Count the pixels that are not ignored, () int64; with class weights, sum the weights of their labels, () float."""
    return (labels != IGNORE_INDEX).sum() if weights is None else _of_pixels(labels, weights).sum()


def _of_pixels(labels: Tensor, weights: Tensor) -> Tensor:
    """Return the weight of each pixel's label, 0 where it is ignored."""
    return torch.cat([weights, weights.new_zeros(1)])[labels.clamp(max=len(weights))]
