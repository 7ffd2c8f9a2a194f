"""The one core of the attacks of constant step: signed gradient steps, projected to the epsilon ball and to [0, 1]."""

from collections.abc import Iterator

import torch
from torch import Tensor

from ddcat_train.attacks.answers import Answer, Model, Objective, Observer, input_gradient
from ddcat_train.attacks.starts import ATTACK_STARTS
from ddcat_train.names import Start, StepSize

__all__ = ["iterate"]


def _cross_entropy(answer: Answer) -> Tensor:
    return answer.loss


def iterate(
    model: Model,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float = 0.03,
    alpha: StepSize = 0.01,
    steps: int = 3,
    start: Start = "clean",
    seeds: Tensor | None = None,
    objective: Objective = _cross_entropy,
    stop_early: bool = False,
    observe: Observer | None = None,
) -> Iterator[tuple[int, Tensor]]:
    """
    Ascend the cross-entropy of the labels, or another objective, by signed gradient steps (Eq. 2 of the paper).

    No gradient of a parameter is computed. Ignored pixels have no influence: their loss is exactly zero. An element of the
    gradient that is not finite counts as zero.

    Parameters
    ----------
    model : callable
        Maps images to logits (N, K, H, W); a module is put into eval() while it is called, and put back.
    images : (N, 3, H, W) float
        In [0, 1].
    labels : (N, H, W) int64
        255 = ignored.
    epsilon : float
        L-infinity bound, in [0, 1] units.
    alpha : float or "eps/n"
        Size of a step, or epsilon divided by the number of steps.
    steps : int
        n of the paper.
    start : "clean", "random" or "lower"
        At x, uniformly in the ball (needs `seeds`), or at x - epsilon.
    seeds : (N,) int64, optional
        One for each image, so that a result does not depend on batch-mates.
    objective : callable, optional
        What is ascended, for every pixel; the cross-entropy by default.
    stop_early : bool
        Take an image out, as it is, once none of its valid pixels is right: it costs no further forward or backward. The
        host then waits for the device at every step.
    observe : callable, optional
        Is shown, at every step, the answer and the input gradient as it came.

    Yields
    ------
    (step, images) : (int, (N, 3, H, W) float)
        First (0, the start), then each step 1..n; always in the ball and in [0, 1].
    """
    size = epsilon / max(steps, 1) if alpha == "eps/n" else alpha
    if epsilon < 0 or steps < 0 or size < 0:
        raise ValueError(f"epsilon {epsilon}, alpha {alpha} and steps {steps} must not be negative")
    lower, upper = (images - epsilon).clamp(min=0), (images + epsilon).clamp(max=1)
    current = ATTACK_STARTS[start](images, epsilon, seeds).detach()
    yield 0, current
    places = torch.arange(len(images), device=images.device)  # of the images that are still attacked
    attacked, truth = current, labels
    for step in range(1, steps + 1):
        if len(places):
            answer, gradient = input_gradient(
                model, attacked, truth, places, objective, step=step, steps=steps, observe=observe, spare_beaten=stop_early
            )
            if stop_early and not answer.unbeaten.all():
                kept = answer.unbeaten
                attacked, truth, places, gradient, lower, upper = (
                    part[kept] for part in (attacked, truth, places, gradient, lower, upper)
                )
            attacked = torch.clamp(attacked + size * gradient.sign(), lower, upper)
            current = attacked if len(places) == len(images) else current.index_copy(0, places, attacked)
        yield step, current
