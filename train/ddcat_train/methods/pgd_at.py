"""Adversarial training by PGD (Madry et al., 2018): every image is adversarial."""

from ddcat_train.attacks import bim
from ddcat_train.config import AttackConfig, MethodConfig
from ddcat_train.methods.base import Portion, Update
from ddcat_train.methods.supervised import supervised
from ddcat_train.networks import Segmenter

__all__ = ["pgd_at"]


def pgd_at(segmenter: Segmenter, portion: Portion, *, attack: AttackConfig, options: MethodConfig) -> list[Update]:
    """
    Train on attacked images alone, from a random start unless the attack says otherwise; see `Step`.

    n + 1 forwards and n + 1 backwards.
    """
    attack = attack.for_method(options)
    adversarial = bim(segmenter, portion.images, portion.labels, seeds=portion.seeds, **attack.model_dump())
    return supervised(segmenter, portion, adversarial, options)
