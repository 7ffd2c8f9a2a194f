"""One perturbation for all images of a split (Moosavi-Dezfooli et al., 2017), by signed gradient steps over batches."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from ddcat_train.attacks.gradient import Model, input_gradient
from ddcat_train.attacks.pixel_weights import weighted
from ddcat_train.errors import AttackError

__all__ = ["apply_universal", "universal_perturbation"]


def apply_universal(images: Tensor, perturbation: Tensor) -> Tensor:
    """Add one perturbation (3, h, w) to images (N, 3, H, W), repeated where they are larger, and cut to [0, 1]."""
    rows, columns = (torch.arange(side, device=images.device) for side in images.shape[2:])
    repeated = perturbation[:, rows % perturbation.shape[1]][:, :, columns % perturbation.shape[2]]
    return (images + repeated).clamp(0, 1)


def universal_perturbation(
    model: Model,
    batches: Callable[[], Iterable[tuple[Tensor, Tensor]]],
    *,
    epsilon: float,
    epochs: int = 5,
    size: tuple[int, int],
) -> Tensor:
    """
    Learn a perturbation on some images, to be tried on others.

    Each batch moves it by the sign of its gradient of the cross-entropy, summed over the images; the step falls linearly from
    epsilon / 4 to none.

    Parameters
    ----------
    model : callable
        Maps images to logits (N, K, H, W).
    batches : callable
        Gives the batches of an epoch: images (N, 3, H, W) in [0, 1] and labels (N, H, W).
    epsilon : float
        L-infinity bound, in [0, 1] units.
    size : (height, width)
        Of the perturbation; it is repeated over larger images, and cut for smaller ones.

    Returns
    -------
    (3, h, w) float
        Within [-epsilon, epsilon].

    Raises
    ------
    AttackError
        Without an image, or for a bound that leaves no room.
    """
    if not 0 < epsilon <= 1:
        raise AttackError(f"epsilon {epsilon:g}: expected a bound above 0 and up to 1, such as 8/255")
    objective = weighted("PGD")
    perturbation: Tensor | None = None
    steps = sum(epochs for _ in batches())
    step = 0
    for _ in range(epochs):
        for images, labels in batches():
            if perturbation is None:
                perturbation = images.new_zeros((images.shape[1], *size))
            step += 1
            attacked = apply_universal(images, perturbation)
            indices = torch.arange(len(images), device=images.device)
            _, gradient = input_gradient(model, attacked, labels, indices, objective, step=step, steps=steps)
            moved = perturbation + epsilon / 4 * (1 - (step - 1) / steps) * _folded(gradient, size).sign()
            perturbation = moved.clamp(-epsilon, epsilon)
    if perturbation is None:
        raise AttackError("a universal perturbation is learnt on images, and there are none: use one or more")
    return perturbation


def _folded(gradient: Tensor, size: tuple[int, int]) -> Tensor:
    """Sum a gradient (N, 3, H, W) over the images and over the places that share a value of the perturbation."""
    total = gradient.sum(0)
    height, width = total.shape[1:]
    folded = total.new_zeros((len(total), *size))
    rows = torch.arange(height, device=total.device) % size[0]
    columns = torch.arange(width, device=total.device) % size[1]
    by_row = total.new_zeros((len(total), size[0], width)).index_add_(1, rows, total)
    return folded.index_add_(2, columns, by_row)
