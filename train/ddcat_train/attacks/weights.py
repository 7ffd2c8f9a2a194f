"""
What an attack gains from each pixel: the weights that make the known attacks of one core.

Each is the ascent of the weighted cross-entropy w(x) CE(f(x), y), in which w is not differentiated.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ddcat.classes import IGNORE_INDEX
from ddcat_train.attacks.answers import Answer, Objective
from ddcat_train.names import WeightName

__all__ = ["WEIGHTS", "Weight", "weighted"]

Weight = Callable[[Answer, Tensor | None], Tensor]  # answer, pixels of each class (K,) -> (N, H, W); any value if ignored


def _probability(answer: Answer) -> Tensor:
    """Of the true class, (N, H, W)."""
    return (-answer.loss.detach()).exp()


def pgd(answer: Answer, class_pixels: Tensor | None) -> Tensor:
    """Weigh all pixels alike (Kurakin et al., 2017; Madry et al., 2018)."""
    return torch.ones_like(answer.loss)


def segpgd(answer: Answer, class_pixels: Tensor | None) -> Tensor:
    """
    Turn from the pixels that are still right to all of them (Gu et al., 2022).

    1 - lambda where the prediction is right and lambda where it is wrong; lambda = (t - 1) / (2 T) for step t = 1..T.
    """
    share = (answer.step - 1) / (2 * answer.steps)
    return torch.where(answer.right, 1 - share, share).to(answer.logits.dtype)


def cospgd(answer: Answer, class_pixels: Tensor | None) -> Tensor:
    """Cosine between the probabilities and the one-hot label (Agnihotri et al., 2024)."""
    probabilities = F.softmax(answer.logits.detach(), 1)
    return _probability(answer) / probabilities.square().sum(1).sqrt()


def tsallis(answer: Answer, class_pixels: Tensor | None) -> Tensor:
    """
    Gradient of the Tsallis cross-entropy, p^(1 - q): from the pixels of high confidence to all of them (TsallisPGD, 2026).

    q grows linearly from -2 at the first step to 1, which is the cross-entropy, at the last.
    """
    q = -2 + 3 * (answer.step - 1) / max(answer.steps - 1, 1)
    return (-(1 - q) * answer.loss.detach()).exp()


def sea_js(answer: Answer, class_pixels: Tensor | None) -> Tensor:
    """
    Gradient of the Jensen-Shannon divergence between probabilities and label (Croce et al., 2024, Eq. 3).

    p (log(1 + p) - log p) / 2, with log p from log_softmax, and its limit 0 where p underflows.
    """
    p, minus_log_p = _probability(answer), answer.loss.detach()
    return torch.where(p > 0, p * (p.log1p() + minus_log_p) / 2, 0.0)


def sea_mce(answer: Answer, class_pixels: Tensor | None) -> Tensor:
    """Only the pixels that are still right: masked cross-entropy (Croce et al., 2024)."""
    return answer.right.to(answer.logits.dtype)


def sea_mce_balanced(answer: Answer, class_pixels: Tensor | None) -> Tensor:
    """Masked cross-entropy in which each class counts alike: divided by its pixels in the training set."""
    if class_pixels is None or len(class_pixels) != answer.logits.shape[1]:
        raise ValueError(
            f"SEA-MCE-Bal needs `class_pixels`, the training pixels of each of {answer.logits.shape[1]} classes, "
            f"not {'none' if class_pixels is None else len(class_pixels)}"
        )
    # The scale is free: the largest weight is 1. A class that training never saw is never right, and its weight of no matter.
    pixels = class_pixels.to(answer.logits).clamp(min=1)
    share = pixels.min() / pixels
    return answer.right * share[answer.labels.masked_fill(answer.labels == IGNORE_INDEX, 0)]


WEIGHTS: dict[WeightName, Weight] = {
    "PGD": pgd,
    "SegPGD": segpgd,
    "CosPGD": cospgd,
    "TsallisPGD": tsallis,
    "SEA-JS": sea_js,
    "SEA-MCE": sea_mce,
    "SEA-MCE-Bal": sea_mce_balanced,
}


def weighted(name: WeightName, class_pixels: Tensor | None = None) -> Objective:
    """
    Give the objective of a name: cross-entropy times a weight that is not differentiated.

    Parameters
    ----------
    name : WeightName
        A key of `WEIGHTS`.
    class_pixels : (K,) int64, optional
        Pixels of each class in the training set. "SEA-MCE-Bal" needs it, the others do not look at it.

    Returns
    -------
    callable
        `Answer` to (N, H, W) float; exactly 0, and of gradient 0, where the label is 255.
    """
    weight = WEIGHTS[name]

    def objective(answer: Answer) -> Tensor:
        return torch.where(answer.labels == IGNORE_INDEX, 0.0, weight(answer, class_pixels)) * answer.loss

    return objective
