"""Standard adversarial training (Alg. 1): a part of every batch is adversarial."""

import torch

from ddcat_train.attacks import bim
from ddcat_train.config import AttackConfig, MethodConfig
from ddcat_train.methods.base import Portion, Update
from ddcat_train.methods.supervised import supervised
from ddcat_train.networks import Segmenter

__all__ = ["sat"]


def sat(segmenter: Segmenter, portion: Portion, *, attack: AttackConfig, options: MethodConfig) -> list[Update]:
    """
    Train on the first images as they are and on the others attacked; see `Step`.

    Only the images that are used are attacked: 2.5 forwards and 2.5 backwards of the batch for n = 3 and a share of a half.
    """
    attack = attack.for_method(options)
    images, first = portion.images, portion.clean
    if first < len(images):
        attacked = bim(segmenter, images[first:], portion.labels[first:], seeds=portion.seeds[first:], **attack.model_dump())
        images = torch.cat([images[:first], attacked])
    return supervised(segmenter, portion, images, options)
