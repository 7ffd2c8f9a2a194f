"""Images as files and engines have them, and as PyTorch does."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

__all__ = ["nearest_8_bit", "to_pixels", "to_planes"]


def to_planes(pixels: npt.NDArray[np.uint8], device: torch.device | None = None) -> Tensor:
    """
    Give what the network sees of what an engine sees.

    Parameters
    ----------
    pixels : (N, H, W, 3) uint8
    device : torch.device, optional
        Where it goes, as 8 bits; the CPU by default.

    Returns
    -------
    (N, 3, H, W) float32
        In [0, 1], channels last in memory.
    """
    return torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2).float() / 255


def to_pixels(images: Tensor) -> npt.NDArray[np.uint8]:
    """
    Give what an engine sees of 8-bit images.

    Parameters
    ----------
    images : (N, 3, H, W) uint8

    Returns
    -------
    (N, H, W, 3) uint8
        Contiguous.
    """
    return images.permute(0, 2, 3, 1).contiguous().cpu().numpy()


def nearest_8_bit(images: Tensor) -> Tensor:
    """
    Round to the nearest grey level. What is bound to be near another image needs `ddcat_train.attacks.to_8_bit`.

    Parameters
    ----------
    images : (N, 3, H, W) float
        In [0, 1].

    Returns
    -------
    (N, 3, H, W) uint8
    """
    return (images * 255).round().to(torch.uint8)
