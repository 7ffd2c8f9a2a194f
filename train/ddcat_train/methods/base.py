"""What every method is made of."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch import Tensor, nn

from ddcat_train.config import AttackConfig, MethodConfig
from ddcat_train.names import Head
from ddcat_train.networks import Segmenter

__all__ = ["Method", "Portion", "Step", "Update"]


@dataclass(frozen=True)
class Portion:
    """
    The images of one update that go through the network together: all of them, or a process's share, or a part of that.

    Attributes
    ----------
    images : (N, 3, H, W) float
        RGB in [0, 1].
    labels : (N, H, W) int64
        Values in 0..K-1, or 255 = ignored.
    seeds : (N,) int64
        For the random start of an attack on each image; on the CPU.
    clean : int
        The first images, which stay clean where a method attacks a part of the batch only.
    valid : () int64, or float
        Pixels of the *whole* update that are not ignored, 1 if there are none. Losses are sums divided by it, so that the sum
        over all portions is the mean over the batch. Where classes are weighted, the sum of those pixels' weights.
    pixels : int
        All pixels of the whole update.
    weights : (K,) float, or None
        Of the classes, in every loss that learns them; not in that of the mask branch, whose classes are others.
    """

    images: Tensor
    labels: Tensor
    seeds: Tensor
    clean: int
    valid: Tensor
    pixels: int
    weights: Tensor | None = None


class Update(NamedTuple):
    """
    One step of the optimiser.

    Attributes
    ----------
    loss : () float
        A portion's part of it: to be summed over the portions.
    parameters : tuple of nn.Parameter
        Those that the step moves; their gradients are taken at the weights before any update of the batch.
    log : mapping of str to () float
        What is worth a line in the log, detached; also to be summed over the portions.
    """

    loss: Tensor
    parameters: tuple[nn.Parameter, ...]
    log: Mapping[str, Tensor]


class Step(Protocol):
    """A method's work on one portion of a batch."""

    def __call__(self, segmenter: Segmenter, portion: Portion, *, attack: AttackConfig, options: MethodConfig) -> list[Update]:
        """
        Make adversarial images and compute losses.

        Parameters
        ----------
        segmenter : Segmenter
            In train() mode, with the method's heads.
        portion : Portion
        attack : AttackConfig
            Names and units as in `ddcat_train.attacks.iterate`.
        options : MethodConfig

        Returns
        -------
        list of Update
            To be applied in this order.
        """


@dataclass(frozen=True)
class Method:
    """
    A way to train.

    Attributes
    ----------
    step : Step
    branches : tuple of Head
        Those that it needs.
    attacks : bool
        Whether it trains on adversarial images.
    """

    step: Step
    branches: tuple[Head, ...]
    attacks: bool

    def heads(self, options: MethodConfig) -> tuple[Head, ...]:
        """The branches, and deep supervision where it is used."""
        return (*self.branches, "deep") if options.deep_weight else self.branches
