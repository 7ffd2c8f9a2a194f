"""Attacks: how images become adversarial images. Every attack is a plain function over the one core in `core`."""

from ddcat_train.attacks.bim import bim, fgsm
from ddcat_train.attacks.core import ATTACK_STARTS, Model, Objective, iterate
from ddcat_train.attacks.modes import evaluating
from ddcat_train.attacks.quantise import to_8_bit
from ddcat_train.attacks.segpgd import segpgd, segpgd_objective
from ddcat_train.attacks.trajectory import Point, trajectory

__all__ = [
    "ATTACK_STARTS",
    "Model",
    "Objective",
    "Point",
    "bim",
    "evaluating",
    "fgsm",
    "iterate",
    "segpgd",
    "segpgd_objective",
    "to_8_bit",
    "trajectory",
]
