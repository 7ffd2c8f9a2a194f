"""Several runs of an attack, of which each image keeps the worst for the model."""

from collections.abc import Callable

import torch
from torch import Tensor

from ddcat_train.attacks.answers import Model
from ddcat_train.attacks.modes import evaluating

__all__ = ["restarted", "right_pixels"]


def restarted(attack: Callable[..., Tensor], model: Model, images: Tensor, labels: Tensor, *, seeds: Tensor) -> Tensor:
    """
    Run an attack from several random starts and keep, of each image, the result of the lowest pixel accuracy.

    Images without a right pixel left are not attacked again.

    Parameters
    ----------
    attack : callable
        Of the form ``attack(model, images, labels, seeds=(N,))``: ``partial(segpgd, epsilon=8 / 255, steps=20)``.
    model, images, labels
        As for the attack.
    seeds : (R, N) int64
        One for each start and image.

    Returns
    -------
    (N, 3, H, W) float
        The earliest of equal results.
    """
    if seeds.ndim != 2 or not len(seeds) or seeds.shape[1] != len(images):
        raise ValueError(f"restarts need one seed for each start and image, (R, {len(images)}), not {tuple(seeds.shape)}")
    best, fewest = images, torch.full((len(images),), torch.iinfo(torch.int64).max, device=images.device)
    for drawn in seeds.to(images.device):
        places = fewest.nonzero().squeeze(1)
        if not len(places):
            break
        found = attack(model, images[places], labels[places], seeds=drawn[places])
        right = right_pixels(model, found, labels[places])
        better = right < fewest[places]
        best = best.index_copy(0, places[better], found[better])
        fewest = fewest.index_copy(0, places[better], right[better])
    return best


def right_pixels(model: Model, images: Tensor, labels: Tensor) -> Tensor:
    """How many valid pixels of each image the model labels right, (N,) int64."""
    with torch.no_grad(), evaluating(model):
        return (model(images).argmax(1) == labels).flatten(1).sum(1)
