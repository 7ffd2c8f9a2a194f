"""Adversarial images as a server receives them: 8 bits a channel."""

import torch
from torch import Tensor

__all__ = ["to_8_bit"]

_SLACK = 1e-3  # grey levels; so that a delta of k/255 keeps its k after float32 rounding


def to_8_bit(adversarial: Tensor, images: Tensor) -> Tensor:
    """
    Round the perturbation of 8-bit images toward zero to whole grey levels.

    Rounding to nearest would leave the ball: 0.03 * 255 is 7.65, of which 7 levels may be used.

    Parameters
    ----------
    adversarial, images : (N, 3, H, W) float
        In [0, 1]; `images` are multiples of 1/255.

    Returns
    -------
    (N, 3, H, W) uint8
    """
    clean = (images * 255).round()
    delta = (adversarial - images) * 255
    levels = delta.sign() * (delta.abs() + _SLACK).floor()
    return (clean + levels).clamp(0, 255).to(torch.uint8)
