"""The types that every method is made of, and the loss that they share."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch import Tensor, nn

from ddcat_train.choices import Head
from ddcat_train.config import AttackConfig, MethodConfig
from ddcat_train.losses import pixel_cross_entropy
from ddcat_train.networks import Segmenter

__all__ = ["Method", "MicroBatch", "OptimizerStep", "TrainingStep", "deep_supervision"]


@dataclass(frozen=True)
class MicroBatch:
    """
    Images of one update that go through the network together: all of them, a rank's slice, or a part of that.

    Attributes
    ----------
    images : (N, 3, H, W) float
        RGB in [0, 1].
    labels : (N, H, W) int64
        Values in 0..K-1, or 255 = ignored.
    seeds : (N,) int64
        For the random start of an attack on each image; on the CPU.
    clean : int
        Number of the first images that stay clean where a method attacks only the others.
    valid : () int64, or float
        Pixels of the *whole* update that are not ignored, 1 if there are none. Losses are sums divided by it, so that the sum
        over all micro-batches is the mean over the batch. Where classes are weighted, the sum of those pixels' weights.
    pixels : int
        All pixels of the whole update.
    weights : (K,) float, or None
        Class weights, in every loss on the classes; not in that of the mask branch, which has two classes of its own.
    """

    images: Tensor
    labels: Tensor
    seeds: Tensor
    clean: int
    valid: Tensor
    pixels: int
    weights: Tensor | None = None


class OptimizerStep(NamedTuple):
    """
    One step of the optimiser.

    Attributes
    ----------
    loss : () float
        A micro-batch's part of it: the loss is the sum over the micro-batches.
    parameters : tuple of nn.Parameter
        The parameters that the step moves; their gradients are taken at the weights before any update of the batch.
    log : mapping of str to () float
        Values for the log, detached; also summed over the micro-batches.
    """

    loss: Tensor
    parameters: tuple[nn.Parameter, ...]
    log: Mapping[str, Tensor]


class TrainingStep(Protocol):
    """A method's work on one micro-batch."""

    def __call__(
        self, segmenter: Segmenter, batch: MicroBatch, *, attack: AttackConfig, options: MethodConfig
    ) -> list[OptimizerStep]:
        """
        Make adversarial images and compute losses.

        Parameters
        ----------
        segmenter : Segmenter
            In train() mode, with the method's heads.
        attack : AttackConfig
            Names and units as in `ddcat_train.attacks.signed_gradient_ascent`.

        Returns
        -------
        list of OptimizerStep
            To be applied in this order.
        """


@dataclass(frozen=True)
class Method:
    """
    A way to train.

    Attributes
    ----------
    branches : tuple of Head
        The heads that it needs, without that of deep supervision.
    attacks : bool
        True where it trains on adversarial images.
    """

    step: TrainingStep
    branches: tuple[Head, ...]
    attacks: bool

    def heads(self, options: MethodConfig) -> tuple[Head, ...]:
        """Return the branches, and the head of deep supervision where it is used."""
        return (*self.branches, "deep") if options.deep_weight else self.branches


def deep_supervision(
    outputs: Mapping[Head, Tensor], batch: MicroBatch, options: MethodConfig
) -> tuple[Tensor | float, dict[str, Tensor]]:
    """Return the weighted loss of the deep supervision head and its entry in the log; 0 and none where it is not used."""
    if not options.deep_weight:
        return 0.0, {}
    loss = pixel_cross_entropy(outputs["deep"], batch.labels, batch.weights).sum() / batch.valid
    return options.deep_weight * loss, {"deep": loss.detach()}
