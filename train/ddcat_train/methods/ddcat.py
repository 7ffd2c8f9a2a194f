"""
DDC-AT: dynamic divide-and-conquer adversarial training (Alg. 2 and 3, Eqs. 3 to 6).

Pixels whose prediction an attack changes are learnt by an auxiliary branch, the others by the main branch; a mask branch
learns to tell them apart. Inference keeps the main branch alone.
"""

from torch import nn

from ddcat.classes import IGNORE_INDEX
from ddcat_train.config import AttackConfig, MethodConfig
from ddcat_train.losses import pixel_cross_entropy
from ddcat_train.methods.base import Portion, Update
from ddcat_train.methods.division import Division, divide
from ddcat_train.methods.supervised import deep_supervision
from ddcat_train.networks import Segmenter

__all__ = ["conquer", "ddcat"]


def ddcat(segmenter: Segmenter, portion: Portion, *, attack: AttackConfig, options: MethodConfig) -> list[Update]:
    """
    Mark the clean images' pixels by Alg. 2 and train the three branches by Alg. 3; see `Step`.

    Costs 4.5 forwards and 4 backwards of the batch for n = 3 and the start at x, 3 of the backwards for input gradients only.
    Another start, or p from Alg. 2, costs half a forward more each; two updates go backwards once more.
    """
    attack = attack.for_method(options)
    division = divide(segmenter, portion, attack=attack, predict_mask=options.predicted_mask == "algorithm-2")
    return conquer(segmenter, portion, division, options)


def conquer(segmenter: Segmenter, portion: Portion, division: Division, options: MethodConfig) -> list[Update]:
    """
    Train the three branches on a divided portion (Alg. 3).

    By default as released: one joint update of all losses, p from the train-mode forward, deep supervision. Two updates are
    those of {S, f_n, f_a} from L_n + L_a (and deep supervision) and of {S, f_m} from L_m.
    """
    labels, valid = portion.labels, portion.valid
    branches = ("main", "auxiliary", "mask")
    outputs = segmenter(division.images, (*branches, "deep") if options.deep_weight else branches)

    chosen = outputs["mask"].detach().argmax(1).bool() if division.chosen is None else division.chosen  # p; q = 1 - p
    main_error = pixel_cross_entropy(outputs["main"], labels, portion.weights)
    auxiliary_error = pixel_cross_entropy(outputs["auxiliary"], labels, portion.weights)
    # Both are divided by the number of all valid pixels, so that their sum is the cross-entropy of the combined output.
    main = main_error.masked_fill(chosen, 0).sum() / valid  # Eq. 3
    auxiliary = auxiliary_error.masked_fill(~chosen, 0).sum() / valid  # Eq. 4
    mask_error = pixel_cross_entropy(outputs["mask"], division.masks)
    if options.mask_loss_on_ignored:
        mask = mask_error.sum() / portion.pixels  # Eq. 5
    else:
        mask = mask_error.masked_fill(labels == IGNORE_INDEX, 0).sum() / valid
    deep, deep_log = deep_supervision(outputs, portion, options)

    log = {
        "main": main.detach(),
        "auxiliary": auxiliary.detach(),
        "mask": mask.detach(),
        **deep_log,
        "mask_share": division.masks.sum() / portion.pixels,  # pixels with M = 1
        "chosen_share": chosen.sum() / portion.pixels,  # pixels with p = 1
    }
    if options.update == "joint":
        return [Update(main + auxiliary + mask + deep, tuple(segmenter.parameters()), log)]  # Eq. 6
    shared = _parameters(segmenter.backbone, segmenter.context)
    others = _parameters(*(segmenter.heads[head] for head in outputs if head != "mask"))
    return [
        Update(main + auxiliary + deep, shared + others, log),
        Update(mask, shared + _parameters(segmenter.heads["mask"]), {}),
    ]


def _parameters(*parts: nn.Module) -> tuple[nn.Parameter, ...]:
    return tuple(parameter for part in parts for parameter in part.parameters())
