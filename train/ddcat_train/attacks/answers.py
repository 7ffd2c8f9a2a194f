"""What a model says of a batch under attack, each thing computed once and only if it is asked for."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ddcat_train.attacks.modes import evaluating
from ddcat_train.losses import pixel_cross_entropy

__all__ = ["Answer", "Model", "Objective", "Observer", "input_gradient"]


@dataclass(frozen=True)
class Answer:
    """
    The answer at one step of an attack.

    Attributes
    ----------
    logits : (N, K, H, W) float
        Differentiable, of the images before the step.
    labels : (N, H, W) int64
        255 = ignored.
    places : (N,) int64
        Which images of the attacked batch these are: images that were taken out are missing.
    step, steps : int
        1..n, and n.
    """

    logits: Tensor
    labels: Tensor
    places: Tensor
    step: int
    steps: int

    @cached_property
    def loss(self) -> Tensor:
        """Cross-entropy of each pixel, (N, H, W), differentiable; 0 where the label is ignored."""
        return pixel_cross_entropy(self.logits, self.labels)

    @cached_property
    def predictions(self) -> Tensor:
        """(N, H, W) int64."""
        return self.logits.detach().argmax(1)

    @cached_property
    def right(self) -> Tensor:
        """Which pixels are right, (N, H, W) bool; never where the label is ignored."""
        return self.predictions == self.labels

    @cached_property
    def unbeaten(self) -> Tensor:
        """Which images have a pixel that is right, (N,) bool: the others have nothing left to gain."""
        return self.right.flatten(1).any(1)


Model = Callable[[Tensor], Tensor]  # images (N, 3, H, W) in [0, 1] -> logits (N, K, H, W)
Objective = Callable[[Answer], Tensor]  # what is to grow, (N, H, W); exactly 0 where the label is 255
# Is shown each answer and its input gradient (N, 3, H, W) as it came; None if there was nothing to gain, so none was computed.
Observer = Callable[[Answer, Tensor | None], None]


def input_gradient(
    model: Model,
    images: Tensor,
    labels: Tensor,
    places: Tensor,
    objective: Objective,
    *,
    step: int,
    steps: int,
    observe: Observer | None = None,
    spare_beaten: bool = False,
) -> tuple[Answer, Tensor]:
    """
    One forward and the gradient of the objective's sum with respect to the images; none of a parameter.

    Parameters
    ----------
    model : callable
        A module is put into eval() while it is called, and put back.
    images, labels, places, step, steps
        As for `Answer`.
    objective : callable
    observe : callable, optional
        Sees the gradient before its elements that are not finite are replaced.
    spare_beaten : bool
        Skip the backward when no image has a pixel that is right. The host then waits for the device.

    Returns
    -------
    answer : Answer
    gradient : (N, 3, H, W) float
        0 where it was not finite, so that it neither spoils an image nor gives a direction that is not there.
    """
    with torch.enable_grad(), evaluating(model):
        leaf = images.detach().requires_grad_()
        answer = Answer(model(leaf), labels, places, step, steps)
        gradient = None
        if not spare_beaten or answer.unbeaten.any():
            # The sum keeps every image's gradient independent of its batch-mates; sign() does not see the scale.
            (gradient,) = torch.autograd.grad(objective(answer).sum(), leaf)
    if observe is not None:
        observe(answer, gradient)
    return answer, torch.zeros_like(images) if gradient is None else gradient.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
