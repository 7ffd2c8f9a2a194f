"""
Attacks: how images become adversarial images.

Each is a plain function: a white-box one over `input_gradient`, a black-box one over `search_signs`.
"""

from ddcat_train.attacks.apgd import SHRINKING, Schedule, apgd
from ddcat_train.attacks.dag import dag
from ddcat_train.attacks.dla import Predict, dla, sign_noise
from ddcat_train.attacks.gradient import Model, Objective, Observer, StepOutput
from ddcat_train.attacks.patch import Placed, learn_patch, patch_side, place_patch
from ddcat_train.attacks.pgd import attack_start, bim, cospgd, pgd, segpgd, signed_gradient_ascent, tsallis_pgd
from ddcat_train.attacks.pixel_weights import WEIGHTS, weighted
from ddcat_train.attacks.sea import SEA, sea
from ddcat_train.attacks.square import square
from ddcat_train.attacks.trajectory import TrajectoryStep, trajectory
from ddcat_train.attacks.universal import apply_universal, universal_perturbation
from ddcat_train.networks.eval_mode import eval_mode

__all__ = [
    "SEA",
    "SHRINKING",
    "WEIGHTS",
    "Model",
    "Objective",
    "Observer",
    "Placed",
    "Predict",
    "Schedule",
    "StepOutput",
    "TrajectoryStep",
    "apgd",
    "apply_universal",
    "attack_start",
    "bim",
    "cospgd",
    "dag",
    "dla",
    "eval_mode",
    "learn_patch",
    "patch_side",
    "pgd",
    "place_patch",
    "sea",
    "segpgd",
    "sign_noise",
    "signed_gradient_ascent",
    "square",
    "trajectory",
    "tsallis_pgd",
    "universal_perturbation",
    "weighted",
]
