"""
DDC-AT: dynamic divide-and-conquer adversarial training (Alg. 2 and 3, Eqs. 3 to 6), and its forms M and N (Table 3).

An auxiliary branch is trained on the pixels whose prediction an attack changes, the main branch on the others; a mask branch is
trained to tell them apart. Inference keeps the main branch alone.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ddcat.classes import IGNORE_INDEX
from ddcat_train.attacks import bim, eval_mode
from ddcat_train.config import AttackConfig, MethodConfig
from ddcat_train.losses import pixel_cross_entropy
from ddcat_train.methods.base import MicroBatch, OptimizerStep, deep_supervision
from ddcat_train.networks import Features, Segmenter

__all__ = ["Division", "branch_losses", "ddcat", "divide_pixels"]


def ddcat(
    segmenter: Segmenter,
    batch: MicroBatch,
    *,
    attack: AttackConfig,
    options: MethodConfig,
    mark_clean: bool = True,
    mark_adversarial: bool = False,
) -> list[OptimizerStep]:
    """
    Divide the pixels by Alg. 2 and train the three branches by Alg. 3; see `TrainingStep`.

    The mask M marks changed pixels, 1[B_clean != B_adv], of the images that stay clean: the paper's method. Its form M marks
    them in all images, its form N in the adversarial ones alone. For n = 3 and the start at x a batch costs

    - 4.5 forwards and 4 backwards, 3 of these for input gradients only. Another start costs half a forward more.
    - Form M: 5 forwards and 4 backwards. Another start costs a whole forward more, for B_clean of all images.
    - Form N: 3 forwards and 2.5 backwards, for only the adversarial images are attacked. Another start costs half a forward
      more.

    p from Alg. 2 costs half a forward more, nothing in form M; two updates cost one more backward.
    """
    division = divide_pixels(
        segmenter,
        batch,
        attack=attack.for_method(options),
        mark_clean=mark_clean,
        mark_adversarial=mark_adversarial,
        predict_mask=options.predicted_mask == "algorithm-2",
    )
    return branch_losses(segmenter, batch, division, options)


class Division(NamedTuple):
    """
    Result of Alg. 2 for a micro-batch, whose first images stay clean in training.

    Attributes
    ----------
    images : (N, 3, H, W) float
        T of Alg. 3: the first images clean, the others adversarial.
    masks : (N, H, W) int64
        M: 1 where the attack changes the prediction for an image that is marked, 0 for every pixel of one that is not.
    chosen : (N, H, W) bool, or None
        p of Alg. 3, lines 4 and 5, with `predict_mask`.
    """

    images: Tensor
    masks: Tensor
    chosen: Tensor | None


class _Maps(NamedTuple):
    """Predictions for all images of a micro-batch; only those that are needed are filled in."""

    combined: Tensor  # (N, H, W) int64: argmax of o_a p + o_n (1 - p)
    chosen: Tensor  # (N, H, W) bool: p = argmax f_m


def divide_pixels(
    segmenter: Segmenter,
    batch: MicroBatch,
    *,
    attack: AttackConfig,
    mark_clean: bool = True,
    mark_adversarial: bool = False,
    predict_mask: bool = False,
) -> Division:
    """
    Attack the main branch, and mark the pixels whose prediction the attack changes (Alg. 2), in eval mode.

    Only what is used is computed: images that are not marked need no maps of predictions, and where the attack starts at x its
    first forward yields those of the clean images.

    Parameters
    ----------
    segmenter : Segmenter
        With the branches main, auxiliary and mask.
    mark_clean, mark_adversarial : bool
        Mark the images that stay clean, or those that become adversarial.
    predict_mask : bool
        Compute p: of the first images clean and of the others attacked.
    """
    images, labels, count, clean = batch.images, batch.labels, len(batch.images), batch.clean
    attacked = slice(0 if mark_clean else clean, count)
    marked = slice(attacked.start, count if mark_adversarial else clean)
    needed_before = slice(0 if predict_mask else marked.start, marked.stop)
    needed_after = slice(marked.start, count if predict_mask else marked.stop)
    at_clean = attack.start == "clean"
    before, after = (_Maps(torch.zeros_like(labels), torch.zeros_like(labels, dtype=torch.bool)) for _ in range(2))
    reused = [slice(attacked.start, needed_before.stop)] if at_clean else []

    def model(current: Tensor) -> Tensor:
        features = segmenter.features(current)
        logits = segmenter.logits("main", features)
        while reused:  # the first forward of an attack from x has the clean images
            part = reused.pop()
            number = part.stop - part.start
            _fill(before, part, segmenter, features.first(number), logits[:number])
        return logits

    adversarial = images.clone()
    with eval_mode(segmenter):
        _predict(before, slice(needed_before.start, attacked.start if at_clean else needed_before.stop), segmenter, images)
        if attacked.start < count:
            adversarial[attacked] = bim(
                model, images[attacked], labels[attacked], seeds=batch.seeds[attacked], **attack.model_dump()
            )
        _predict(after, needed_after, segmenter, adversarial)

    masks = torch.zeros_like(labels)
    masks[marked] = (before.combined[marked] != after.combined[marked]).long()
    chosen = torch.cat([before.chosen[:clean], after.chosen[clean:]]) if predict_mask else None
    return Division(torch.cat([images[:clean], adversarial[clean:]]), masks, chosen)


@torch.no_grad()
def _predict(maps: _Maps, part: slice, segmenter: Segmenter, images: Tensor) -> None:
    if part.start < part.stop:
        features = segmenter.features(images[part])
        _fill(maps, part, segmenter, features, segmenter.logits("main", features))


@torch.no_grad()
def _fill(maps: _Maps, part: slice, segmenter: Segmenter, features: Features, main: Tensor) -> None:
    if part.start < part.stop:
        chosen = segmenter.logits("mask", features).argmax(1).bool()
        auxiliary = segmenter.logits("auxiliary", features)
        # where(), for a sum of products would spread a NaN of the branch that was not chosen
        maps.combined[part] = torch.where(chosen, auxiliary.argmax(1), main.argmax(1))
        maps.chosen[part] = chosen


def branch_losses(segmenter: Segmenter, batch: MicroBatch, division: Division, options: MethodConfig) -> list[OptimizerStep]:
    """
    Compute the losses of the three branches on a divided micro-batch (Alg. 3).

    By default as released: one joint update of all losses, p from the train-mode forward, deep supervision. Two updates are
    those of {S, f_n, f_a} from L_n + L_a (and deep supervision) and of {S, f_m} from L_m.
    """
    labels, valid = batch.labels, batch.valid
    branches = ("main", "auxiliary", "mask")
    outputs = segmenter(division.images, (*branches, "deep") if options.deep_weight else branches)

    chosen = outputs["mask"].detach().argmax(1).bool() if division.chosen is None else division.chosen  # p; q = 1 - p
    main_error = pixel_cross_entropy(outputs["main"], labels, batch.weights)
    auxiliary_error = pixel_cross_entropy(outputs["auxiliary"], labels, batch.weights)
    # Both are divided by the number of all valid pixels, so that their sum is the cross-entropy of the combined output.
    main = main_error.masked_fill(chosen, 0).sum() / valid  # Eq. 3
    auxiliary = auxiliary_error.masked_fill(~chosen, 0).sum() / valid  # Eq. 4
    mask_error = pixel_cross_entropy(outputs["mask"], division.masks)
    if options.mask_loss_on_ignored:
        mask = mask_error.sum() / batch.pixels  # Eq. 5
    else:
        mask = mask_error.masked_fill(labels == IGNORE_INDEX, 0).sum() / valid
    deep, deep_log = deep_supervision(outputs, batch, options)

    log = {
        "main": main.detach(),
        "auxiliary": auxiliary.detach(),
        "mask": mask.detach(),
        **deep_log,
        "mask_share": division.masks.sum() / batch.pixels,  # pixels with M = 1
        "chosen_share": chosen.sum() / batch.pixels,  # pixels with p = 1
    }
    if options.update == "joint":
        return [OptimizerStep(main + auxiliary + mask + deep, tuple(segmenter.parameters()), log)]  # Eq. 6
    shared = segmenter.shared()
    others = _parameters(*(segmenter.heads[head] for head in outputs if head != "mask"))
    return [
        OptimizerStep(main + auxiliary + deep, shared + others, log),
        OptimizerStep(mask, shared + _parameters(segmenter.heads["mask"]), {}),
    ]


def _parameters(*parts: nn.Module) -> tuple[nn.Parameter, ...]:
    return tuple(parameter for part in parts for parameter in part.parameters())
