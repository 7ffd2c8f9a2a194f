"""
Attacks: how images become adversarial images.

Each is a plain function: a white-box one over the input gradient of `answers`, a black-box one over the search of `signs`.
"""

from ddcat_train.attacks.answers import Answer, Model, Objective, Observer
from ddcat_train.attacks.apgd import SHRINKING, Schedule, apgd
from ddcat_train.attacks.core import iterate
from ddcat_train.attacks.dla import Predict, dla, sign_noise
from ddcat_train.attacks.modes import evaluating
from ddcat_train.attacks.pgd import bim, cospgd, pgd, segpgd, tsallis_pgd
from ddcat_train.attacks.quantise import to_8_bit
from ddcat_train.attacks.sea import SEA, sea
from ddcat_train.attacks.square import square
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
    "Predict",
    "Schedule",
    "apgd",
    "bim",
    "cospgd",
    "dla",
    "evaluating",
    "iterate",
    "pgd",
    "sea",
    "segpgd",
    "sign_noise",
    "square",
    "to_8_bit",
    "trajectory",
    "tsallis_pgd",
    "weighted",
]
