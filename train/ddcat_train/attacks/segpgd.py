"""SegPGD (Gu et al., 2022): PGD that turns from the pixels that are still right to all of them."""

import torch
from torch import Tensor

from ddcat_train.attacks.core import Model, iterate
from ddcat_train.losses import pixel_cross_entropy
from ddcat_train.names import Start, StepSize

__all__ = ["segpgd", "segpgd_objective"]


def segpgd_objective(logits: Tensor, labels: Tensor, step: int, steps: int) -> Tensor:
    """
    Cross-entropy of each pixel, times 1 - lambda where the prediction is right and lambda where it is wrong.

    lambda = (t - 1) / (2 T) for step t = 1..T: 0 at first, a half at most. The weight is not differentiated.
    """
    share = (step - 1) / (2 * steps)
    right = logits.detach().argmax(1) == labels
    weight = torch.where(right, 1 - share, share)
    return weight * pixel_cross_entropy(logits, labels)


def segpgd(
    model: Model,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float = 0.03,
    alpha: StepSize = 0.01,
    steps: int = 3,
    start: Start = "random",
    seeds: Tensor | None = None,
) -> Tensor:
    """
    Signed gradient steps on the weighted cross-entropy of SegPGD.

    Parameters and result as for `bim`.
    """
    *_, (_, last) = iterate(
        model,
        images,
        labels,
        epsilon=epsilon,
        alpha=alpha,
        steps=steps,
        start=start,
        seeds=seeds,
        objective=segpgd_objective,
    )
    return last
