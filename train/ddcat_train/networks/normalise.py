"""The first layer of every network: images in [0, 1] become what the backbone was pretrained on."""

from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from ddcat_train import imagenet

__all__ = ["UNCHANGED", "Normalise"]

UNCHANGED = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))  # mean and standard deviation that leave images in [0, 1] as they are


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
        self._exact = {"mean": tuple(mean), "std": tuple(std)}
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Map (N, 3, H, W) in [0, 1] to the same shape, about zero mean and unit variance."""
        normalised: Tensor = (images - self.mean) / self.std
        return normalised

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._refine()
        return self

    def _load_from_state_dict(self, *arguments: Any, **options: Any) -> None:
        super()._load_from_state_dict(*arguments, **options)
        self._refine()

    def _refine(self) -> None:
        """In float64, replace what was rounded to float32 by what it was rounded from."""
        for name, values in self._exact.items():
            buffer = getattr(self, name)
            if buffer.dtype is torch.float64 and not buffer.is_meta:
                exact = torch.tensor(values, dtype=torch.float64, device=buffer.device).view_as(buffer)
                if torch.equal(exact.float(), buffer.float()):
                    buffer.copy_(exact)
