"""All of n = 0..N from one run of N steps."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ddcat_train.attacks.answers import Answer, Model, Observer
from ddcat_train.attacks.core import iterate
from ddcat_train.attacks.modes import evaluating
from ddcat_train.names import Start, StepSize

__all__ = ["Point", "trajectory"]


class Point(NamedTuple):
    """The adversarial images after n steps and what the model says of them."""

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
) -> Iterator[Point]:
    """
    Evaluate BIM with n = 0, 1, ..., `steps` in one pass.

    Step n + 1 begins with the very forward that predicts the result of n steps, so the pass costs `steps` + 1 forwards
    and `steps` input gradients. n = 0 is the start of the attack: the clean images for ``start="clean"``.

    Parameters
    ----------
    As for `bim`. With `stop_early`, an image that has no right pixel left after n steps stays so for every larger n.

    Raises
    ------
    ValueError
        For ``alpha="eps/n"``: the steps of n and of n + 1 then differ in size, so no pass holds both.
    """
    if alpha == "eps/n":
        raise ValueError('alpha "eps/n" makes every n an attack of its own: a trajectory needs a constant alpha')
    predictions = torch.empty_like(labels)  # written by the first answer, which is of all images
    places = torch.arange(len(images), device=images.device)  # of the images whose last predictions are not known

    def remember(answer: Answer, gradient: Tensor | None) -> None:
        nonlocal predictions, places
        predictions = predictions.index_copy(0, answer.places, answer.predictions)
        if stop_early:
            places = answer.places[answer.unbeaten]
        if observe is not None:
            observe(answer, gradient)

    before: Tensor | None = None
    with evaluating(model):
        for step, current in iterate(
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
                yield Point(step - 1, before, predictions)
            before = current
        assert before is not None  # for iterate yields its start
        if len(places):
            with torch.no_grad():
                last = model(before if len(places) == len(images) else before[places]).argmax(1)
            predictions = predictions.index_copy(0, places, last)
        yield Point(steps, before, predictions)
