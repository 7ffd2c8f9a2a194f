"""SEA (Croce et al., 2024): the strongest known ensemble of attacks on a segmenter."""

from collections.abc import Callable

import torch
from torch import Tensor

from ddcat_train.attacks.apgd import SHRINKING, apgd
from ddcat_train.attacks.gradient import Model, Observer
from ddcat_train.choices import WeightName
from ddcat_train.seeds import derive_seed

__all__ = ["SEA", "sea"]

SEA: tuple[WeightName, ...] = ("SEA-JS", "SEA-MCE", "SEA-MCE-Bal")


def sea(
    model: Model,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float,
    steps: int = 300,
    seeds: Tensor,
    class_pixels: Tensor,
    observe: Callable[[WeightName], Observer | None] = lambda name: None,
) -> dict[str, Tensor]:
    """
    Attack by APGD on three losses, with one random start each and a ball that shrinks from 2 epsilon.

    The caller chooses among the results: for a data set's mIoU the choice depends on all of its images
    (`ddcat_bench.worst_case`).

    Parameters
    ----------
    model, images, labels, epsilon, class_pixels
        As for `apgd`.
    steps : int
        Input gradients of each member; 300 is the paper's.
    seeds : (N,) int64
        One for each image. The members draw different starts from it.
    observe : callable, optional
        Returns, for a member's name, the observer of its outputs and gradients.

    Returns
    -------
    dict of str to (N, 3, H, W) float
        For each member, a key of `WEIGHTS`, the iterate of each image with the fewest correct pixels.
    """
    return {
        name: apgd(
            model,
            images,
            labels,
            epsilon=epsilon,
            steps=steps,
            weight=name,
            class_pixels=class_pixels,
            schedule=SHRINKING,
            seeds=torch.tensor([derive_seed(seed, member) for seed in seeds.tolist()]),
            observe=observe(name),
        )
        for member, name in enumerate(SEA)
    }
