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


class _Branches(NamedTuple):
    combined: Tensor  # (n, H, W) int64: argmax of o_a p + o_n (1 - p)
    chosen: Tensor  # (n, H, W) bool: p = argmax f_m


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
    before = slice(0, marked.stop) if predict_mask else marked  # whose clean maps are needed
    after = slice(marked.start, count) if predict_mask else marked  # whose adversarial maps are needed
    maps: list[_Branches] = []

    def model(current: Tensor) -> Tensor:
        features = segmenter.features(current)
        logits = segmenter.logits("main", features)
        if not maps:  # the first forward of the attack sees x, from the first image of `before` on
            wanted = before.stop - before.start
            maps.append(_branches(segmenter, features.first(wanted), logits[:wanted]))
        return logits

    with evaluating(segmenter):
        if attack.start != "clean" or before.start != attacked.start:
            maps.append(_predict(segmenter, images[before]))
        adversarial = images.clone()
        adversarial[attacked] = bim(
            model, images[attacked], labels[attacked], seeds=portion.seeds[attacked], **attack.model_dump()
        )
        changed = _predict(segmenter, adversarial[after])

    masks = torch.zeros_like(labels)
    masks[marked] = (_of(maps[0].combined, before, marked) != _of(changed.combined, after, marked)).long()
    chosen = None
    if predict_mask:
        first, second = slice(0, clean), slice(clean, count)
        chosen = torch.cat([_of(maps[0].chosen, before, first), _of(changed.chosen, after, second)])
    return Division(torch.cat([images[:clean], adversarial[clean:]]), masks, chosen)


def _of(values: Tensor, held: slice, wanted: slice) -> Tensor:
    return values[wanted.start - held.start : wanted.stop - held.start]


@torch.no_grad()
def _predict(segmenter: Segmenter, images: Tensor) -> _Branches:
    features = segmenter.features(images)
    return _branches(segmenter, features, segmenter.logits("main", features))


@torch.no_grad()
def _branches(segmenter: Segmenter, features: Features, main: Tensor) -> _Branches:
    chosen = segmenter.logits("mask", features).argmax(1).bool()
    auxiliary = segmenter.logits("auxiliary", features)
    # where(), for a sum of products would spread a NaN of the branch that was not chosen
    return _Branches(torch.where(chosen, auxiliary.argmax(1), main.argmax(1)), chosen)
