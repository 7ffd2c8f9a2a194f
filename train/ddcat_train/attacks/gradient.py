"""The gradient of an objective with respect to the images: the part that all white-box attacks share."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ddcat_train.losses import pixel_cross_entropy
from ddcat_train.networks.eval_mode import eval_mode

__all__ = ["Model", "Objective", "Observer", "StepOutput", "input_gradient"]


@dataclass(frozen=True)
class StepOutput:
    """
    Output of a model at one step of an attack; whatever follows from it is computed once, on demand.

    Attributes
    ----------
    logits : (N, K, H, W) float
        Differentiable, of the images before the step.
    labels : (N, H, W) int64
        255 = ignored.
    indices : (N,) int64
        Places of these images in the attacked batch; images that were taken out are missing.
    step, steps : int
        1..n, and n.
    """

    logits: Tensor
    labels: Tensor
    indices: Tensor
    step: int
    steps: int

    @cached_property
    def loss(self) -> Tensor:
        """Cross-entropy of each pixel, (N, H, W), differentiable; 0 where the label is ignored."""
        return pixel_cross_entropy(self.logits, self.labels)

    @cached_property
    def predictions(self) -> Tensor:
        """Predicted labels, (N, H, W) int64."""
        return self.logits.detach().argmax(1)

    @cached_property
    def correct(self) -> Tensor:
        """Correct pixels, (N, H, W) bool; False where the label is ignored."""
        return self.predictions == self.labels

    @cached_property
    def not_fooled(self) -> Tensor:
        """Images with a correct pixel, (N,) bool; an attack has nothing left to gain from the others."""
        return self.correct.flatten(1).any(1)


Model = Callable[[Tensor], Tensor]  # images (N, 3, H, W) in [0, 1] -> logits (N, K, H, W)
Objective = Callable[[StepOutput], Tensor]  # the quantity to maximise, (N, H, W); exactly 0 where the label is 255
# Receives each output and its input gradient (N, 3, H, W) as computed; None where no image was left to attack.
Observer = Callable[[StepOutput, Tensor | None], None]


def input_gradient(
    model: Model,
    images: Tensor,
    labels: Tensor,
    indices: Tensor,
    objective: Objective,
    *,
    step: int,
    steps: int,
    observe: Observer | None = None,
    skip_fooled: bool = False,
) -> tuple[StepOutput, Tensor]:
    """
    Compute one forward and the gradient of the objective's sum with respect to the images; none of a parameter.

    Parameters
    ----------
    model : callable
        A module is put into eval() while it is called, and put back.
    images, labels, indices, step, steps
        As for `StepOutput`.
    observe : callable, optional
        Receives the gradient before its elements that are not finite are replaced.
    skip_fooled : bool
        Skip the backward when no image has a correct pixel. The host then waits for the device.

    Returns
    -------
    output : StepOutput
    gradient : (N, 3, H, W) float
        0 where it was not finite, so that it neither spoils an image nor invents a direction.
    """
    with torch.enable_grad(), eval_mode(model):
        leaf = images.detach().requires_grad_()
        output = StepOutput(model(leaf), labels, indices, step, steps)
        gradient = None
        if not skip_fooled or output.not_fooled.any():
            # The sum keeps every image's gradient independent of its batch-mates; sign() does not see the scale.
            (gradient,) = torch.autograd.grad(objective(output).sum(), leaf)
    if observe is not None:
        observe(output, gradient)
    return output, torch.zeros_like(images) if gradient is None else gradient.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
