"""Scores of a network on adversarial images: its labels, and the counts of right and wrong pixels."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ddcat.metrics import Counts, confusion_counts
from ddcat.preprocess import restore
from ddcat_bench.attack.attacks import AttackBatch, attack
from ddcat_bench.attack.suites import AttackSpec
from ddcat_train.attacks import Model
from ddcat_train.pixels import to_8_bit

__all__ = ["ScoreFn", "count_each", "count_victims", "grey_levels", "predict", "score_whole_images"]

# model that the attack is made on, model that is scored, spec, batch, classes -> (2, cases, N, K, 3): floats, then 8 bits
ScoreFn = Callable[[Model, Model, AttackSpec, AttackBatch, int], Counts]


def score_whole_images(source: Model, target: Model, spec: AttackSpec, victims: AttackBatch, classes: int) -> Counts:
    """
    Attack whole images and count what is left: one consistent perturbation of each, made on `source`.

    Returns (2, C, N, K, 3) int64: for each of the spec's cases, on the images as they are, and rounded to 8 bits.
    """
    floats, eight_bit = [], []
    for case, adversarial in zip(spec.cases, attack(source, spec, victims), strict=True):
        known = adversarial.predictions if source is target else None
        if known is None:
            with torch.no_grad():
                known = target(adversarial.images).argmax(1)
        floats.append(np.stack(count_each(victims.labels, known, classes)))
        if case.name == "clean":  # has 8 bits
            eight_bit.append(floats[-1])
        else:
            received = predict(target, to_8_bit(adversarial.images, victims.images))
            eight_bit.append(np.stack(count_each(victims.labels, received, classes)))
    return np.stack([np.stack(floats), np.stack(eight_bit)])


def predict(model: Model, received: Tensor) -> Tensor:
    """Label 8-bit images, (N, 3, H, W) uint8 -> (N, H, W) int64."""
    with torch.no_grad():
        return model(received.float() / 255).argmax(1)


def count_each(labels: Tensor, predictions: Tensor, classes: int) -> list[Counts]:
    """Count each image of a batch: see `ddcat.metrics.confusion_counts`."""
    return [confusion_counts(t, p, classes) for t, p in zip(labels.cpu().numpy(), predictions.cpu().numpy(), strict=True)]


def count_victims(victims: AttackBatch, predictions: Tensor, classes: int) -> list[Counts]:
    """Count each image of a batch, at the size of its file where its labels have that: a mask is then restored first."""
    if victims.full_labels is None:
        return count_each(victims.labels, predictions, classes)
    masks = predictions.to(torch.uint8).cpu().numpy()
    return [
        confusion_counts(labels, restore(mask, (labels.shape[0], labels.shape[1])), classes)
        for labels, mask in zip(victims.full_labels, masks, strict=True)
    ]


def grey_levels(epsilon: float) -> int:
    """Whole grey levels that 8-bit images may differ by under a bound: 7 for 0.03."""
    return int(to_8_bit(torch.full((1, 3, 1, 1), epsilon), torch.zeros(1, 3, 1, 1)).max())
