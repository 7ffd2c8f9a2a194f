"""What every method is made of."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypedDict

from torch import Tensor, nn

from ddcat_train.data.loader import Batch
from ddcat_train.names import Head, Start, StepSize
from ddcat_train.networks import Segmenter

__all__ = ["AttackSettings", "Method", "Step", "Update"]


class AttackKeywords(TypedDict):
    """Keyword arguments of an attack."""

    epsilon: float
    alpha: StepSize
    steps: int
    start: Start


class AttackSettings(NamedTuple):
    """The attack of training; names and units as in `ddcat_train.attacks.iterate`."""

    epsilon: float = 0.03
    alpha: StepSize = 0.01
    steps: int = 3
    start: Start = "clean"

    def keywords(self, paper_literal: bool) -> AttackKeywords:
        """As keyword arguments; the paper's letter starts at x - epsilon."""
        start: Start = "lower" if paper_literal else self.start
        return {"epsilon": self.epsilon, "alpha": self.alpha, "steps": self.steps, "start": start}


class Update(NamedTuple):
    """
    One step of the optimiser.

    Attributes
    ----------
    loss : () float
    parameters : tuple of nn.Parameter
        Those that the step moves; their gradients are taken at the weights before any update of the batch.
    log : mapping of str to () float
        What is worth a line in the log, detached.
    """

    loss: Tensor
    parameters: tuple[nn.Parameter, ...]
    log: Mapping[str, Tensor]


class Step(Protocol):
    """A method's work on one batch."""

    def __call__(
        self, segmenter: Segmenter, batch: Batch, *, attack: AttackSettings, paper_literal: bool = False
    ) -> list[Update]:
        """
        Make adversarial images and compute losses.

        Parameters
        ----------
        segmenter : Segmenter
            In train() mode, with the method's heads.
        batch : Batch
        attack : AttackSettings
        paper_literal : bool
            Follow the paper's letter where the released code chose otherwise.

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
    heads : tuple of Head
        The branches it needs.
    attacks : bool
        Whether it trains on adversarial images.
    """

    step: Step
    heads: tuple[Head, ...]
    attacks: bool

    def all_heads(self, *, paper_literal: bool) -> tuple[Head, ...]:
        """The branches, and deep supervision, of which the paper's equations know nothing."""
        return self.heads if paper_literal else (*self.heads, "deep")
