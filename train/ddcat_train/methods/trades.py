"""TRADES (Zhang et al., 2019) for segmentation: correct predictions on clean images, and the same on attacked ones."""

import torch
from torch import Tensor

from ddcat_train.attacks import eval_mode, signed_gradient_ascent
from ddcat_train.config import AttackConfig, MethodConfig
from ddcat_train.losses import pixel_cross_entropy, pixel_divergence
from ddcat_train.methods.base import MicroBatch, OptimizerStep, deep_supervision
from ddcat_train.networks import Segmenter

__all__ = ["trades"]


def trades(segmenter: Segmenter, batch: MicroBatch, *, attack: AttackConfig, options: MethodConfig) -> list[OptimizerStep]:
    """
    Train on CE(f(x), y) + beta * KL(f(x) || f(x')), where x' maximises that divergence; see `TrainingStep`.

    Both are means over the valid pixels. Clean and adversarial images go through the network together, so batch norm sees both,
    also that of deep supervision, which is trained on the clean ones. The divergence is differentiated with respect to both of
    its arguments. The attack needs another start than x, where the divergence has no gradient.

    n + 3 forwards and n + 2 backwards.
    """
    images, labels, count = batch.images, batch.labels, len(batch.images)
    adversarial = _attacked(segmenter, batch, attack.for_method(options))
    outputs = segmenter(torch.cat([images, adversarial]), ("main", "deep") if options.deep_weight else ("main",))
    clean, attacked = outputs["main"].split(count)
    main = pixel_cross_entropy(clean, labels, batch.weights).sum() / batch.valid
    divergence = pixel_divergence(clean, attacked, labels, batch.weights).sum() / batch.valid
    deep, deep_log = deep_supervision({head: logits[:count] for head, logits in outputs.items()}, batch, options)
    log = {"main": main.detach(), "divergence": divergence.detach(), **deep_log}
    return [OptimizerStep(main + options.beta * divergence + deep, tuple(segmenter.parameters()), log)]


def _attacked(segmenter: Segmenter, batch: MicroBatch, attack: AttackConfig) -> Tensor:
    with eval_mode(segmenter):  # over all steps: the weights stay constant
        with torch.no_grad():
            reference = segmenter(batch.images)
        *_, (_, last) = signed_gradient_ascent(
            segmenter,
            batch.images,
            batch.labels,
            seeds=batch.seeds,
            objective=lambda output: pixel_divergence(reference, output.logits, output.labels),
            **attack.model_dump(),
        )
    return last
