"""BIM with every number of steps n = 0..N, from one run of N steps."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ddcat_train.attacks.gradient import Model, Observer, StepOutput
from ddcat_train.attacks.pgd import signed_gradient_ascent
from ddcat_train.choices import Start, StepSize
from ddcat_train.networks.eval_mode import eval_mode

__all__ = ["TrajectoryStep", "trajectory"]


class TrajectoryStep(NamedTuple):
    """The adversarial images after n steps, and the model's predictions."""

    steps: int
    images: Tensor  # (N, 3, H, W)
    predictions: Tensor  # (N, H, W) int64


def trajectory(
    model: Model,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float = 0.03,
    alpha: StepSize = 0.01,
    steps: int = 7,
    start: Start = "clean",
    seeds: Tensor | None = None,
    stop_early: bool = False,
    observe: Observer | None = None,
) -> Iterator[TrajectoryStep]:
    """
    Evaluate BIM with n = 0, 1, ..., `steps` in one pass.

    Step n + 1 begins with the very forward that predicts the result of n steps, so the pass costs `steps` + 1 forwards
    and `steps` input gradients. n = 0 is the start of the attack: the clean images for ``start="clean"``.

    Parameters
    ----------
    As for `bim`. With `stop_early`, an image that has no correct pixel left after n steps stays so for every larger n.

    Raises
    ------
    ValueError
        For ``alpha="eps/n"``: the steps of n and of n + 1 then differ in size, so no pass holds both.
    """
    if alpha == "eps/n":
        raise ValueError('alpha "eps/n" makes every n an attack of its own: a trajectory needs a constant alpha')
    predictions = torch.empty_like(labels)  # written at the first step, which has all images
    indices = torch.arange(len(images), device=images.device)  # of the images whose last predictions are not known

    def remember(output: StepOutput, gradient: Tensor | None) -> None:
        nonlocal predictions, indices
        predictions = predictions.index_copy(0, output.indices, output.predictions)
        if stop_early:
            indices = output.indices[output.not_fooled]
        if observe is not None:
            observe(output, gradient)

    before: Tensor | None = None
    with eval_mode(model):
        for step, current in signed_gradient_ascent(
            model,
            images,
            labels,
            epsilon=epsilon,
            alpha=alpha,
            steps=steps,
            start=start,
            seeds=seeds,
            stop_early=stop_early,
            observe=remember,
        ):
            if before is not None:
                yield TrajectoryStep(step - 1, before, predictions)
            before = current
        assert before is not None  # signed_gradient_ascent yields its start
        if len(indices):
            with torch.no_grad():
                last = model(before if len(indices) == len(images) else before[indices]).argmax(1)
            predictions = predictions.index_copy(0, indices, last)
        yield TrajectoryStep(steps, before, predictions)
