"""Images as files and engines have them, and as PyTorch does."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

__all__ = ["nearest_8_bit", "to_8_bit", "to_8_bit_in_l2", "to_pixels", "to_planes"]

_SLACK = 1e-3  # grey levels; so that a delta of k/255 keeps its k after float32 rounding


def to_planes(pixels: npt.NDArray[np.uint8], device: torch.device | None = None) -> Tensor:
    """Convert an engine's input (N, H, W, C) uint8 to a network's: (N, C, H, W) float32 in [0, 1], channels last in memory."""
    return torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2).float() / 255


def to_pixels(images: Tensor) -> npt.NDArray[np.uint8]:
    """Convert 8-bit images (N, C, H, W) to an engine's input (N, H, W, C) uint8, contiguous."""
    return images.permute(0, 2, 3, 1).contiguous().cpu().numpy()


def nearest_8_bit(images: Tensor) -> Tensor:
    """Round images (N, C, H, W) in [0, 1] to the nearest grey level, uint8; adversarial ones need `to_8_bit`."""
    return (images * 255).round().to(torch.uint8)


def to_8_bit(adversarial: Tensor, images: Tensor) -> Tensor:
    """
    Round the perturbation of 8-bit images toward zero to whole grey levels: adversarial images as a server receives them.

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


def to_8_bit_in_l2(adversarial: Tensor, images: Tensor, epsilon: float) -> Tensor:
    """
    Round the perturbation of 8-bit images to whole grey levels, within an L2 ball.

    Rounding toward zero loses much of a perturbation of which most values are below one level. So as many values as the norm
    has room for are then rounded up, those next to a whole level first, and none of less than half a level.

    Parameters
    ----------
    adversarial, images : (N, 3, H, W) float
        In [0, 1]; `images` are multiples of 1/255.
    epsilon : float
        Norm over all values of an image, in [0, 1] units.

    Returns
    -------
    (N, 3, H, W) uint8
        Within `epsilon` of `images`.
    """
    clean = (images * 255).round()
    delta = (adversarial * 255 - clean).flatten(1).double()  # (N, 3 * H * W)
    down = delta.abs().floor()
    rest, order = (delta.abs() - down).sort(dim=1, descending=True)
    cost = (2 * down + 1).gather(1, order).cumsum(1)  # of one level more, in the square of the norm
    room = (255 * epsilon) ** 2 - down.square().sum(1, keepdim=True)
    up = torch.zeros_like(down).scatter(1, order, ((rest >= 0.5) & (cost <= room)).double())
    levels = (delta.sign() * (down + up)).view_as(clean).to(clean.dtype)
    return (clean + levels).clamp(0, 255).to(torch.uint8)
