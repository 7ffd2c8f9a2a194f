"""What a network makes of adversarial images: labels, and the counts of right and wrong pixels."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ddcat.metrics import Counts, confusion_counts
from ddcat_bench.attack.passes import Victims, attack
from ddcat_bench.attack.suites import Plan
from ddcat_train.attacks import Model, to_8_bit

__all__ = ["Judge", "answers", "count_each", "grey_levels", "judge_whole"]

# what the attack is made on, what is judged, plan, batch, number of classes -> (2, cases, N, K, 3): floats, then 8 bits
Judge = Callable[[Model, Model, Plan, Victims, int], Counts]


def judge_whole(maker: Model, judged: Model, plan: Plan, victims: Victims, classes: int) -> Counts:
    """
    Attack whole images and count what is left: one consistent perturbation of each.

    Parameters
    ----------
    maker : callable
        Images to logits; what the attack is made on.
    judged : callable
    plan : Plan
    victims : Victims
    classes : int

    Returns
    -------
    (2, C, N, K, 3) int64
        For each of the plan's cases: on the images as they are, and rounded to 8 bits.
    """
    floats, eight_bit = [], []
    for case, found in zip(plan.cases, attack(maker, plan, victims), strict=True):
        known = found.predictions if maker is judged else None
        if known is None:
            with torch.no_grad():
                known = judged(found.images).argmax(1)
        floats.append(np.stack(count_each(victims.labels, known, classes)))
        if case.name == "clean":  # has 8 bits
            eight_bit.append(floats[-1])
        else:
            received = answers(judged, to_8_bit(found.images, victims.images))
            eight_bit.append(np.stack(count_each(victims.labels, received, classes)))
    return np.stack([np.stack(floats), np.stack(eight_bit)])


def answers(model: Model, received: Tensor) -> Tensor:
    """
    Labels of 8-bit images.

    Parameters
    ----------
    model : callable
    received : (N, 3, H, W) uint8

    Returns
    -------
    (N, H, W) int64
    """
    with torch.no_grad():
        return model(received.float() / 255).argmax(1)


def count_each(labels: Tensor, predictions: Tensor, classes: int) -> list[Counts]:
    """Count each image of a batch: see `ddcat.metrics.confusion_counts`."""
    return [confusion_counts(t, p, classes) for t, p in zip(labels.cpu().numpy(), predictions.cpu().numpy(), strict=True)]


def grey_levels(epsilon: float) -> int:
    """Whole grey levels that 8-bit images may differ by under a bound: 7 for 0.03."""
    return int(to_8_bit(torch.full((1, 3, 1, 1), epsilon), torch.zeros(1, 3, 1, 1)).max())
