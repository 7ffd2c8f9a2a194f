"""The one core of all attacks: signed gradient steps, projected to the epsilon ball and to [0, 1]."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ddcat_train.attacks.modes import evaluating
from ddcat_train.losses import pixel_cross_entropy
from ddcat_train.names import Start, StepSize

__all__ = ["ATTACK_STARTS", "Model", "Objective", "iterate"]

Model = Callable[[Tensor], Tensor]  # images (N, 3, H, W) in [0, 1] -> logits (N, K, H, W)
# logits (N, K, H, W), labels (N, H, W), step 1..n, n -> what is to grow, (N, H, W); exactly 0 where the label is 255
Objective = Callable[[Tensor, Tensor, int, int], Tensor]


def _cross_entropy(logits: Tensor, labels: Tensor, step: int, steps: int) -> Tensor:
    return pixel_cross_entropy(logits, labels)


def _clean(images: Tensor, epsilon: float, seeds: Tensor | None) -> Tensor:
    return images


def _lower(images: Tensor, epsilon: float, seeds: Tensor | None) -> Tensor:
    return (images - epsilon).clamp(0, 1)


def _random(images: Tensor, epsilon: float, seeds: Tensor | None) -> Tensor:
    if seeds is None or len(seeds) != len(images):
        raise ValueError("a random start needs one seed for each image")
    # Drawn on the CPU and in float32, so that it is the same on every device and in every precision.
    draws = [
        torch.rand(images.shape[1:], generator=torch.Generator().manual_seed(seed), dtype=torch.float32)
        for seed in seeds.tolist()
    ]
    drawn = torch.stack(draws)
    if images.is_cuda:
        drawn = drawn.pin_memory()  # from other memory, the host would wait for the device
    noise = drawn.to(images.device, images.dtype, non_blocking=True) * 2 - 1
    return (images + epsilon * noise).clamp(0, 1)


ATTACK_STARTS: dict[Start, Callable[[Tensor, float, Tensor | None], Tensor]] = {
    "clean": _clean,
    "random": _random,
    "lower": _lower,
}


def iterate(
    model: Model,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float,
    alpha: StepSize,
    steps: int,
    start: Start = "clean",
    seeds: Tensor | None = None,
    objective: Objective = _cross_entropy,
) -> Iterator[tuple[int, Tensor]]:
    """
    Ascend the cross-entropy of the labels, or another objective, by signed gradient steps (Eq. 2 of the paper).

    No gradient of a parameter is computed. Ignored pixels have no influence: their loss is exactly zero.

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

    Yields
    ------
    (step, images) : (int, (N, 3, H, W) float)
        First (0, the start), then each step 1..n; always in the ball and in [0, 1].
    """
    if epsilon < 0 or steps < 0:
        raise ValueError(f"epsilon {epsilon} and steps {steps} must not be negative")
    size = epsilon / max(steps, 1) if alpha == "eps/n" else alpha
    lower, upper = (images - epsilon).clamp(min=0), (images + epsilon).clamp(max=1)
    current = ATTACK_STARTS[start](images, epsilon, seeds).detach()
    yield 0, current
    for step in range(1, steps + 1):
        gradient = _input_gradient(model, current, lambda logits: objective(logits, labels, step, steps))  # noqa: B023
        current = torch.clamp(current + size * gradient.sign(), lower, upper)
        yield step, current


def _input_gradient(model: Model, images: Tensor, objective: Callable[[Tensor], Tensor]) -> Tensor:
    with torch.enable_grad(), evaluating(model):
        leaf = images.detach().requires_grad_()
        # The sum over pixels keeps every image's gradient independent of its batch-mates; sign() does not see the scale.
        loss = objective(model(leaf)).sum()
        return torch.autograd.grad(loss, leaf)[0]
