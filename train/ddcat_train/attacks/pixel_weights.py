"""
Weights of the pixels in an attack's objective: they tell the attacks of one ascent apart.

Each is the ascent of the weighted cross-entropy w(x) CE(f(x), y), in which w is not differentiated.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ddcat.classes import IGNORE_INDEX
from ddcat_train.attacks.gradient import Objective, StepOutput
from ddcat_train.choices import WeightName

__all__ = ["WEIGHTS", "Weight", "weighted"]

Weight = Callable[[StepOutput, Tensor | None], Tensor]  # output, pixels of each class (K,) -> (N, H, W); any if ignored


def _probability(output: StepOutput) -> Tensor:
    """Return the probability of the true class, (N, H, W)."""
    return (-output.loss.detach()).exp()


def pgd(output: StepOutput, class_pixels: Tensor | None) -> Tensor:
    """Weigh all pixels alike (Kurakin et al., 2017; Madry et al., 2018)."""
    return torch.ones_like(output.loss)


def segpgd(output: StepOutput, class_pixels: Tensor | None) -> Tensor:
    """
    Turn from the correct pixels to all of them (Gu et al., 2022).

    1 - lambda where the prediction is correct and lambda where it is wrong; lambda = (t - 1) / (2 T) for step t = 1..T.
    """
    share = (output.step - 1) / (2 * output.steps)
    return torch.where(output.correct, 1 - share, share).to(output.logits.dtype)


def cospgd(output: StepOutput, class_pixels: Tensor | None) -> Tensor:
    """Weigh by the cosine between the probabilities and the one-hot label (Agnihotri et al., 2024)."""
    probabilities = F.softmax(output.logits.detach(), 1)
    return _probability(output) / probabilities.square().sum(1).sqrt()


def tsallis(output: StepOutput, class_pixels: Tensor | None) -> Tensor:
    """
    Turn from the pixels of high confidence to all of them: p^(1 - q), the gradient of Tsallis cross-entropy (TsallisPGD, 2026).

    q grows linearly from -2 at the first step to 1, which is the cross-entropy, at the last.
    """
    q = -2 + 3 * (output.step - 1) / max(output.steps - 1, 1)
    return (-(1 - q) * output.loss.detach()).exp()


def sea_js(output: StepOutput, class_pixels: Tensor | None) -> Tensor:
    """
    Weigh as the gradient of the Jensen-Shannon divergence does between probabilities and label (Croce et al., 2024, Eq. 3).

    p (log(1 + p) - log p) / 2, with log p from log_softmax, and its limit 0 where p underflows.
    """
    p, minus_log_p = _probability(output), output.loss.detach()
    return torch.where(p > 0, p * (p.log1p() + minus_log_p) / 2, 0.0)


def sea_mce(output: StepOutput, class_pixels: Tensor | None) -> Tensor:
    """Weigh only the correct pixels: masked cross-entropy (Croce et al., 2024)."""
    return output.correct.to(output.logits.dtype)


def sea_mce_balanced(output: StepOutput, class_pixels: Tensor | None) -> Tensor:
    """Weigh only the correct pixels, each divided by the training pixels of its class, so that classes count alike."""
    if class_pixels is None or len(class_pixels) != output.logits.shape[1]:
        raise ValueError(
            f"SEA-MCE-Bal needs `class_pixels`, the training pixels of each of {output.logits.shape[1]} classes, "
            f"not {'none' if class_pixels is None else len(class_pixels)}"
        )
    # The scale is free: the largest weight is 1. A class that training never saw is never correct: its weight does not matter.
    pixels = class_pixels.to(output.logits).clamp(min=1)
    share = pixels.min() / pixels
    return output.correct * share[output.labels.masked_fill(output.labels == IGNORE_INDEX, 0)]


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
    Return the objective of a name: cross-entropy times a weight that is not differentiated.

    Parameters
    ----------
    name : WeightName
        A key of `WEIGHTS`.
    class_pixels : (K,) int64, optional
        Pixels of each class in the training set. "SEA-MCE-Bal" needs it, the others ignore it.

    Returns
    -------
    callable
        `StepOutput` to (N, H, W) float; exactly 0, and of gradient 0, where the label is 255.
    """
    weight = WEIGHTS[name]

    def objective(output: StepOutput) -> Tensor:
        return torch.where(output.labels == IGNORE_INDEX, 0.0, weight(output, class_pixels)) * output.loss

    return objective
