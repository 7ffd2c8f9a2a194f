"""The first layer of every network: images in [0, 1] become what the backbone was pretrained on."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ddcat_train import imagenet

__all__ = ["Normalise"]


class Normalise(nn.Module):
    """
    Subtract the mean and divide by the standard deviation of each channel.

    It sits inside the network so that an epsilon has one meaning, and so that it leaves with the network. Under autocast it
    stays in float32: rounding a [0, 1] image to bfloat16 would move its pixels by half a grey level.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float] = imagenet.MEAN, std: Sequence[float] = imagenet.STD) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Map (N, 3, H, W) in [0, 1] to the same shape, about zero mean and unit variance."""
        normalised: Tensor = (images - self.mean) / self.std
        return normalised
