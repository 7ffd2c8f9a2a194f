"""Attacks: how images become adversarial images. Every attack is a plain function over one input gradient, in `answers`."""

from ddcat_train.attacks.answers import Answer, Model, Objective, Observer
from ddcat_train.attacks.apgd import SHRINKING, Schedule, apgd
from ddcat_train.attacks.core import iterate
from ddcat_train.attacks.modes import evaluating
from ddcat_train.attacks.pgd import bim, cospgd, fgsm, pgd, segpgd, tsallis_pgd
from ddcat_train.attacks.quantise import to_8_bit
from ddcat_train.attacks.restarts import restarted, right_pixels
from ddcat_train.attacks.sea import SEA, sea
from ddcat_train.attacks.starts import ATTACK_STARTS
from ddcat_train.attacks.trajectory import Point, trajectory
from ddcat_train.attacks.weights import WEIGHTS, weighted

__all__ = [
    "ATTACK_STARTS",
    "SEA",
    "SHRINKING",
    "WEIGHTS",
    "Answer",
    "Model",
    "Objective",
    "Observer",
    "Point",
    "Schedule",
    "apgd",
    "bim",
    "cospgd",
    "evaluating",
    "fgsm",
    "iterate",
    "pgd",
    "restarted",
    "right_pixels",
    "sea",
    "segpgd",
    "to_8_bit",
    "trajectory",
    "tsallis_pgd",
    "weighted",
]
