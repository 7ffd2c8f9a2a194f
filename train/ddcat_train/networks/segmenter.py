"""What training, attacks, export and evaluation ask of a network, whatever it is made of."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Protocol, overload

from torch import Tensor, nn

from ddcat_train.choices import Head
from ddcat_train.networks.normalise import Normalise

__all__ = ["Features", "Segmenter"]


class Features(Protocol):
    """What all heads of a segmenter share; made by one forward of its shared part."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images."""

    def first(self, count: int) -> "Features":
        """Keep the first images of the batch."""


class Segmenter(nn.Module, ABC):
    """
    A segmentation network with one main branch and the further heads of its training.

    Attributes
    ----------
    classes : int
        K, without the ignored label.
    normalise : Normalise
        The first layer, which takes images in [0, 1].
    backbone : nn.Module
        What learns at `optim.lr`; all else learns faster, by `optim.head_lr_factor`.
    heads : nn.ModuleDict
        By the names of `Head`; "main" among them.
    traced : pair of (height, width)
        Two sizes without a side in common, large enough that every layer has several places in each direction: a graph for
        any size is exported from the first, and once more from the second.
    bands : int
        Of an image: red, green and blue, unless the configuration names others.
    largest : int or None
        Pixels a side to which all images are padded, where the network takes that one size alone; None: it takes any.
    """

    classes: int
    normalise: Normalise
    backbone: nn.Module
    heads: nn.ModuleDict
    traced: tuple[tuple[int, int], tuple[int, int]] = ((71, 103), (150, 133))  # of sides that no network or attack prefers
    largest: int | None = None
    bands: int = 3

    @abstractmethod
    def features(self, images: Tensor) -> Features:
        """
        Compute what the heads share.

        Parameters
        ----------
        images : (N, C, H, W) float
            In [0, 1], RGB or the bands of the configuration.
        """

    @abstractmethod
    def low_resolution_logits(self, head: Head, features: Any) -> Tensor:
        """Apply one head; (N, K, h, w) as the head gives them."""

    @abstractmethod
    def enlarge(self, logits: Tensor, size: tuple[int, int]) -> Tensor:
        """Resize low-resolution logits (N, K, h, w) to images of (H, W), as the network does it: (N, K, H, W)."""

    @abstractmethod
    def shared(self) -> tuple[nn.Parameter, ...]:
        """Return the parameters that all branches share: S of Alg. 3."""

    def logits(self, head: Head, features: Any) -> Tensor:
        """Apply one head and resize to the image; (N, K, H, W), or (N, 2, H, W) for the mask branch."""
        return self.enlarge(self.low_resolution_logits(head, features), features.size)

    @overload
    def forward(self, images: Tensor, heads: None = None) -> Tensor: ...

    @overload
    def forward(self, images: Tensor, heads: Sequence[Head]) -> dict[Head, Tensor]: ...

    def forward(self, images: Tensor, heads: Sequence[Head] | None = None) -> Tensor | dict[Head, Tensor]:
        """
        Compute logits, of the main branch alone or of the heads that are asked for; others cost nothing.

        Parameters
        ----------
        images : (N, C, H, W) float
            In [0, 1], RGB or the bands of the configuration.

        Returns
        -------
        (N, K, H, W) float, or one such tensor for each head asked for.
        """
        features = self.features(images)
        if heads is None:
            return self.logits("main", features)
        return {head: self.logits(head, features) for head in heads}
