"""TRADES (Zhang et al., 2019) for segmentation: clean images are to be right, and attacked ones to be answered alike."""

import torch
from torch import Tensor

from ddcat_train.attacks import evaluating, iterate
from ddcat_train.config import AttackConfig, MethodConfig
from ddcat_train.losses import pixel_cross_entropy, pixel_divergence
from ddcat_train.methods.base import Portion, Update
from ddcat_train.methods.supervised import deep_supervision
from ddcat_train.networks import Segmenter

__all__ = ["trades"]


def trades(segmenter: Segmenter, portion: Portion, *, attack: AttackConfig, options: MethodConfig) -> list[Update]:
    """
    Train on CE(f(x), y) + beta * KL(f(x) || f(x')), where x' maximises that divergence; see `Step`.

    Both are means over the valid pixels. Clean and adversarial images go through the network together, so batch norm sees both,
    also that of deep supervision, which learns from the clean ones. The divergence is differentiated with respect to both of
    its arguments. The attack needs another start than x, where the divergence has no gradient.

    n + 3 forwards and n + 2 backwards.
    """
    images, labels, count = portion.images, portion.labels, len(portion.images)
    adversarial = _attacked(segmenter, portion, attack.for_method(options))
    outputs = segmenter(torch.cat([images, adversarial]), ("main", "deep") if options.deep_weight else ("main",))
    clean, attacked = outputs["main"].split(count)
    main = pixel_cross_entropy(clean, labels, portion.weights).sum() / portion.valid
    divergence = pixel_divergence(clean, attacked, labels, portion.weights).sum() / portion.valid
    deep, deep_log = deep_supervision({head: logits[:count] for head, logits in outputs.items()}, portion, options)
    log = {"main": main.detach(), "divergence": divergence.detach(), **deep_log}
    return [Update(main + options.beta * divergence + deep, tuple(segmenter.parameters()), log)]


def _attacked(segmenter: Segmenter, portion: Portion, attack: AttackConfig) -> Tensor:
    with evaluating(segmenter):  # over all steps, for what is kept of constant weights
        with torch.no_grad():
            reference = segmenter(portion.images)
        *_, (_, last) = iterate(
            segmenter,
            portion.images,
            portion.labels,
            seeds=portion.seeds,
            objective=lambda answer: pixel_divergence(reference, answer.logits, answer.labels),
            **attack.model_dump(),
        )
    return last
