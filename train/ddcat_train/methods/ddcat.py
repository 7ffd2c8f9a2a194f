"""
DDC-AT: dynamic divide-and-conquer adversarial training (Alg. 2 and 3, Eqs. 3 to 6).

Pixels whose prediction an attack changes are learnt by an auxiliary branch, the others by the main branch; a mask branch
learns to tell them apart. Inference keeps the main branch alone.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ddcat_train.attacks import bim, evaluating
from ddcat_train.data.loader import Batch
from ddcat_train.losses import mean_over_valid, pixel_cross_entropy
from ddcat_train.methods.base import AttackSettings, Update
from ddcat_train.methods.supervised import deep_supervision
from ddcat_train.networks import Features, Segmenter

__all__ = ["Division", "ddcat", "divide"]


class Division(NamedTuple):
    """
    What Alg. 2 makes of a batch, whose first half stays clean in training.

    Attributes
    ----------
    images : (N, 3, H, W) float
        T of Alg. 3: the first floor(m/2) images clean, the others adversarial.
    masks : (N, H, W) int64
        M: 1 where the attack changes the prediction for a clean image, 0 for every pixel of an adversarial one.
    chosen : (N, H, W) bool, or None
        p of Alg. 3, lines 4 and 5, where the paper's letter is followed.
    """

    images: Tensor
    masks: Tensor
    chosen: Tensor | None


class _Branches(NamedTuple):
    combined: Tensor  # (n, H, W) int64: argmax of o_a p + o_n (1 - p)
    chosen: Tensor  # (n, H, W) bool: p = argmax f_m


def ddcat(segmenter: Segmenter, batch: Batch, *, attack: AttackSettings, paper_literal: bool = False) -> list[Update]:
    """
    Divide the batch's pixels by Alg. 2 and train the three branches by Alg. 3; see `Step`.

    By default one joint update of all losses, with p from the train-mode forward and deep supervision, as released. To the
    paper's letter: the attack starts at x - epsilon, p comes from Alg. 2, and there are two updates, of {S, f_n, f_a} from
    L_n + L_a and of {S, f_m} from L_m.

    Costs 4.5 forwards and 4 backwards of the batch for n = 3 and the start at x, 3 of the backwards for input gradients only.
    """
    division = divide(segmenter, batch, attack=attack, paper_literal=paper_literal)
    heads = ("main", "auxiliary", "mask")
    outputs = segmenter(division.images, heads if paper_literal else (*heads, "deep"))

    chosen = outputs["mask"].detach().argmax(1).bool() if division.chosen is None else division.chosen  # p; q = 1 - p
    main_error = pixel_cross_entropy(outputs["main"], batch.labels)
    auxiliary_error = pixel_cross_entropy(outputs["auxiliary"], batch.labels)
    # Both are divided by the number of all valid pixels, so that their sum is the cross-entropy of the combined output.
    main = mean_over_valid(main_error.masked_fill(chosen, 0), batch.labels)  # Eq. 3
    auxiliary = mean_over_valid(auxiliary_error.masked_fill(~chosen, 0), batch.labels)  # Eq. 4
    mask = pixel_cross_entropy(outputs["mask"], division.masks).mean()  # Eq. 5, ignored pixels included
    deep, deep_log = deep_supervision(outputs, batch.labels)

    log = {
        "main": main.detach(),
        "auxiliary": auxiliary.detach(),
        "mask": mask.detach(),
        **deep_log,
        "mask_share": division.masks.float().mean(),  # pixels with M = 1
        "chosen_share": chosen.float().mean(),  # pixels with p = 1
    }
    if not paper_literal:
        return [Update(main + auxiliary + mask + deep, tuple(segmenter.parameters()), log)]  # Eq. 6
    shared = (*segmenter.backbone.parameters(), *segmenter.context.parameters())
    return [
        Update(main + auxiliary, (*shared, *_branch(segmenter, "main"), *_branch(segmenter, "auxiliary")), log),
        Update(mask, (*shared, *_branch(segmenter, "mask")), {}),
    ]


def divide(segmenter: Segmenter, batch: Batch, *, attack: AttackSettings, paper_literal: bool) -> Division:
    """
    Attack the main branch and mark the pixels whose prediction changes (Alg. 2), with the weights as they are.

    Nothing is computed that is not used: only the clean half needs the maps of predictions, and when the attack starts at x its
    first forward has them.
    """
    images, half = batch.images, len(batch.images) // 2
    before: list[_Branches] = []

    def attacked(current: Tensor) -> Tensor:
        features = segmenter.features(current)
        logits = segmenter.logits("main", features)
        if not before:
            before.append(_branches(segmenter, features.first(half), logits[:half]))
        return logits

    keywords = attack.keywords(paper_literal)
    with evaluating(segmenter):
        if keywords["start"] != "clean" or not keywords["steps"]:
            before.append(_predict(segmenter, images[:half]))
        adversarial = bim(attacked, images, batch.labels, seeds=batch.seeds, **keywords)
        after = _predict(segmenter, adversarial if paper_literal else adversarial[:half])

    masks = torch.zeros_like(batch.labels)
    masks[:half] = (before[0].combined != after.combined[:half]).long()
    chosen = torch.cat([before[0].chosen, after.chosen[half:]]) if paper_literal else None
    return Division(torch.cat([images[:half], adversarial[half:]]), masks, chosen)


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


def _branch(segmenter: Segmenter, head: str) -> tuple[nn.Parameter, ...]:
    return tuple(segmenter.heads[head].parameters())
