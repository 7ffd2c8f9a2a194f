"""A segmenter whose logits a graph gives: a file of ONNX, run by torch or by its own runtime."""

from collections.abc import Callable
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from ddcat_train.choices import Head
from ddcat_train.networks import Segmenter

__all__ = ["GraphSegmenter"]


class _Logits(NamedTuple):
    logits: Tensor  # (N, K, h, w)
    size: tuple[int, int]  # of the images

    def first(self, count: int) -> "_Logits":
        return _Logits(self.logits[:count], self.size)


class GraphSegmenter(Segmenter):
    """
    A network that is one function; it has no other heads, and nothing of it is trained.

    Parameters
    ----------
    run : nn.Module or callable
        Maps images (N, 3, H, W) in [0, 1] to logits (N, K, h, w).
    classes : int
    """

    def __init__(self, run: Callable[[Tensor], Tensor], *, classes: int) -> None:
        super().__init__()
        self.classes = classes
        self.heads = nn.ModuleDict({"main": nn.Identity()})
        self.run = run
        self.eval()

    def features(self, images: Tensor) -> _Logits:
        """Compute the logits."""
        return _Logits(self.run(images), (images.shape[2], images.shape[3]))

    def low_resolution_logits(self, head: Head, features: _Logits) -> Tensor:
        """Return the logits, (N, K, h, w), as the graph gives them."""
        return features.logits

    def enlarge(self, logits: Tensor, size: tuple[int, int]) -> Tensor:
        """Resize logits (N, K, h, w) to (N, K, H, W), as the graph in a bundle does."""
        if tuple(logits.shape[2:]) == size:
            return logits
        return F.interpolate(logits, size, mode="bilinear", align_corners=False)

    def shared(self) -> tuple[nn.Parameter, ...]:
        """Return no parameters."""
        return ()
