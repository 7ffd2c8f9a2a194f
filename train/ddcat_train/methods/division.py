"""
The division of pixels (Alg. 2): attack the main branch, and mark the pixels whose prediction the attack changes.

Nothing is computed that is not used: only images that are marked need the maps of predictions, and where the attack starts at
x its first forward has those of the clean images.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ddcat_train.attacks import bim, evaluating
from ddcat_train.config import AttackConfig
from ddcat_train.methods.base import Portion
from ddcat_train.networks import Features, Segmenter

__all__ = ["Division", "divide"]


class Division(NamedTuple):
    """
    What Alg. 2 makes of a portion, whose first images stay clean in training.

    Attributes
    ----------
    images : (N, 3, H, W) float
        T of Alg. 3: the first images clean, the others adversarial.
    masks : (N, H, W) int64
        M: 1 where the attack changes the prediction for an image that is marked, 0 for every pixel of one that is not.
    chosen : (N, H, W) bool, or None
        p of Alg. 3, lines 4 and 5, where it was asked for.
    """

    images: Tensor
    masks: Tensor
    chosen: Tensor | None


class _Maps(NamedTuple):
    """Of all images of a portion; only those that were asked for are filled in."""

    combined: Tensor  # (N, H, W) int64: argmax of o_a p + o_n (1 - p)
    chosen: Tensor  # (N, H, W) bool: p = argmax f_m


def divide(
    segmenter: Segmenter,
    portion: Portion,
    *,
    attack: AttackConfig,
    mark_clean: bool = True,
    mark_adversarial: bool = False,
    predict_mask: bool = False,
) -> Division:
    """
    Attack and mark, with the weights as they are, in eval mode.

    Parameters
    ----------
    segmenter : Segmenter
        With the branches main, auxiliary and mask.
    portion : Portion
    attack : AttackConfig
    mark_clean, mark_adversarial : bool
        Whether M marks the images that stay clean and those that become adversarial: the paper's method, its form M (both) and
        its form N (the adversarial ones).
    predict_mask : bool
        Whether p is wanted: of the clean images as they are and of the others attacked.
    """
    images, labels, count, clean = portion.images, portion.labels, len(portion.images), portion.clean
    attacked = slice(0 if mark_clean else clean, count)
    marked = slice(attacked.start, count if mark_adversarial else clean)
    wanted_before = slice(0 if predict_mask else marked.start, marked.stop)
    wanted_after = slice(marked.start, count if predict_mask else marked.stop)
    at_clean = attack.start == "clean"
    before, after = (_Maps(torch.zeros_like(labels), torch.zeros_like(labels, dtype=torch.bool)) for _ in range(2))
    reused = [slice(attacked.start, wanted_before.stop)] if at_clean else []

    def model(current: Tensor) -> Tensor:
        features = segmenter.features(current)
        logits = segmenter.logits("main", features)
        while reused:  # the first forward of an attack from x sees the clean images
            where = reused.pop()
            number = where.stop - where.start
            _fill(before, where, segmenter, features.first(number), logits[:number])
        return logits

    adversarial = images.clone()
    with evaluating(segmenter):
        _predict(before, slice(wanted_before.start, attacked.start if at_clean else wanted_before.stop), segmenter, images)
        if attacked.start < count:
            adversarial[attacked] = bim(
                model, images[attacked], labels[attacked], seeds=portion.seeds[attacked], **attack.model_dump()
            )
        _predict(after, wanted_after, segmenter, adversarial)

    masks = torch.zeros_like(labels)
    masks[marked] = (before.combined[marked] != after.combined[marked]).long()
    chosen = torch.cat([before.chosen[:clean], after.chosen[clean:]]) if predict_mask else None
    return Division(torch.cat([images[:clean], adversarial[clean:]]), masks, chosen)


@torch.no_grad()
def _predict(maps: _Maps, where: slice, segmenter: Segmenter, images: Tensor) -> None:
    if where.start < where.stop:
        features = segmenter.features(images[where])
        _fill(maps, where, segmenter, features, segmenter.logits("main", features))


@torch.no_grad()
def _fill(maps: _Maps, where: slice, segmenter: Segmenter, features: Features, main: Tensor) -> None:
    if where.start < where.stop:
        chosen = segmenter.logits("mask", features).argmax(1).bool()
        auxiliary = segmenter.logits("auxiliary", features)
        # where(), for a sum of products would spread a NaN of the branch that was not chosen
        maps.combined[where] = torch.where(chosen, auxiliary.argmax(1), main.argmax(1))
        maps.chosen[where] = chosen
