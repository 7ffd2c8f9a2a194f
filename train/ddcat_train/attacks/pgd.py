"""The attacks of constant step, from BIM to TsallisPGD: one core, different weights of the pixels."""

from typing import TypedDict, Unpack

from torch import Tensor

from ddcat_train.attacks.answers import Model, Observer
from ddcat_train.attacks.core import iterate
from ddcat_train.attacks.modes import evaluating
from ddcat_train.attacks.weights import weighted
from ddcat_train.names import Start, StepSize, WeightName

__all__ = ["Options", "bim", "cospgd", "pgd", "segpgd", "tsallis_pgd"]


class Options(TypedDict, total=False):
    """What `iterate` takes beside the objective, with its defaults."""

    epsilon: float
    alpha: StepSize
    steps: int
    start: Start
    seeds: Tensor | None
    stop_early: bool
    observe: Observer | None


def bim(model: Model, images: Tensor, labels: Tensor, **options: Unpack[Options]) -> Tensor:
    """
    Basic iterative method (Eq. 2): signed gradient steps, clipped to the ball around the image and to [0, 1].

    One step of alpha = epsilon is FGSM (Eq. 1).

    Parameters
    ----------
    model : callable
        Maps images to logits (N, K, H, W).
    images : (N, 3, H, W) float
        In [0, 1].
    labels : (N, H, W) int64
        255 = ignored: without influence on the result.
    epsilon, alpha, steps, start, seeds, stop_early, observe
        As for `iterate`; the defaults are the paper's in training.

    Returns
    -------
    (N, 3, H, W) float
        Within epsilon of `images`, in [0, 1].
    """
    return _last(model, images, labels, "PGD", options)


def pgd(model: Model, images: Tensor, labels: Tensor, **options: Unpack[Options]) -> Tensor:
    """BIM from a random start, so that `seeds` are needed (Madry et al., 2018). Parameters and result as for `bim`."""
    return _last(model, images, labels, "PGD", {"start": "random", **options})


def segpgd(model: Model, images: Tensor, labels: Tensor, **options: Unpack[Options]) -> Tensor:
    """PGD that turns from the pixels that are still right to all of them. Parameters and result as for `pgd`."""
    return _last(model, images, labels, "SegPGD", {"start": "random", **options})


def cospgd(model: Model, images: Tensor, labels: Tensor, **options: Unpack[Options]) -> Tensor:
    """PGD on the pixels whose probabilities are aligned with the label. Parameters and result as for `pgd`."""
    return _last(model, images, labels, "CosPGD", {"start": "random", **options})


def tsallis_pgd(model: Model, images: Tensor, labels: Tensor, **options: Unpack[Options]) -> Tensor:
    """PGD that turns from the pixels of high confidence to all of them. Parameters and result as for `pgd`."""
    return _last(model, images, labels, "TsallisPGD", {"start": "random", **options})


def _last(model: Model, images: Tensor, labels: Tensor, weight: WeightName, options: Options) -> Tensor:
    with evaluating(model):  # over all steps, for what is kept of constant weights
        *_, (_, last) = iterate(model, images, labels, objective=weighted(weight), **options)
    return last
