"""
The attacks of constant step, from FGSM to TsallisPGD: gradient steps, projected to the epsilon ball and to [0, 1].

All of them are one ascent; they differ in the start and in the weights of the pixels (`ddcat_train.attacks.pixel_weights`).
"""

from collections.abc import Iterator
from typing import TypedDict, Unpack

import torch
from torch import Tensor

from ddcat_train.attacks.gradient import Model, Objective, Observer, StepOutput, input_gradient
from ddcat_train.attacks.norms import NORMS
from ddcat_train.attacks.pixel_weights import weighted
from ddcat_train.choices import NormName, Start, StepSize, WeightName
from ddcat_train.networks.eval_mode import eval_mode

__all__ = ["attack_start", "bim", "cospgd", "pgd", "segpgd", "signed_gradient_ascent", "tsallis_pgd"]


class _Options(TypedDict, total=False):
    """Options of `signed_gradient_ascent` beside the objective, with its defaults."""

    epsilon: float
    alpha: StepSize
    steps: int
    norm: NormName
    start: Start
    seeds: Tensor | None
    stop_early: bool
    observe: Observer | None


def bim(model: Model, images: Tensor, labels: Tensor, **options: Unpack[_Options]) -> Tensor:
    """
    Attack by the basic iterative method (Eq. 2): signed gradient steps, clipped to the ball around the image and to [0, 1].

    One step of alpha = epsilon is FGSM (Eq. 1).

    Parameters
    ----------
    model : callable
        Maps images to logits (N, K, H, W).
    images : (N, 3, H, W) float
        In [0, 1].
    labels : (N, H, W) int64
        255 = ignored: without influence on the result.
    epsilon, alpha, steps, norm, start, seeds, stop_early, observe
        As for `signed_gradient_ascent`; the defaults are the paper's in training.

    Returns
    -------
    (N, 3, H, W) float
        Within epsilon of `images`, in [0, 1].
    """
    return _last(model, images, labels, "PGD", options)


def pgd(model: Model, images: Tensor, labels: Tensor, **options: Unpack[_Options]) -> Tensor:
    """Attack by BIM from a random start, which needs `seeds` (Madry et al., 2018). Parameters and result as for `bim`."""
    return _last(model, images, labels, "PGD", {"start": "random", **options})


def segpgd(model: Model, images: Tensor, labels: Tensor, **options: Unpack[_Options]) -> Tensor:
    """Attack by PGD that turns from the correct pixels to all of them. Parameters and result as for `pgd`."""
    return _last(model, images, labels, "SegPGD", {"start": "random", **options})


def cospgd(model: Model, images: Tensor, labels: Tensor, **options: Unpack[_Options]) -> Tensor:
    """Attack by PGD on the pixels whose probabilities are aligned with the label. Parameters and result as for `pgd`."""
    return _last(model, images, labels, "CosPGD", {"start": "random", **options})


def tsallis_pgd(model: Model, images: Tensor, labels: Tensor, **options: Unpack[_Options]) -> Tensor:
    """Attack by PGD that turns from the pixels of high confidence to all of them. Parameters and result as for `pgd`."""
    return _last(model, images, labels, "TsallisPGD", {"start": "random", **options})


def _last(model: Model, images: Tensor, labels: Tensor, weight: WeightName, options: _Options) -> Tensor:
    with eval_mode(model):  # over all steps: the weights stay constant
        *_, (_, last) = signed_gradient_ascent(model, images, labels, objective=weighted(weight), **options)
    return last


def _cross_entropy(output: StepOutput) -> Tensor:
    return output.loss


def signed_gradient_ascent(
    model: Model,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float = 0.03,
    alpha: StepSize = 0.01,
    steps: int = 3,
    norm: NormName = "linf",
    start: Start = "clean",
    seeds: Tensor | None = None,
    objective: Objective = _cross_entropy,
    stop_early: bool = False,
    observe: Observer | None = None,
) -> Iterator[tuple[int, Tensor]]:
    """
    Ascend the cross-entropy of the labels, or another objective, by signed gradient steps (Eq. 2 of the paper).

    No gradient of a parameter is computed. Ignored pixels have no influence: their loss is exactly zero. An element of the
    gradient that is not finite counts as zero.

    Parameters
    ----------
    model : callable
        Maps images to logits (N, K, H, W); a module is put into eval() while it is called, and put back.
    images : (N, 3, H, W) float
        In [0, 1].
    labels : (N, H, W) int64
        255 = ignored.
    epsilon : float
        Bound of the perturbation, in [0, 1] units.
    alpha : float or "eps/n"
        Size of a step, or epsilon divided by the number of steps.
    steps : int
        n of the paper.
    norm : "linf" or "l2"
        Of the bound, and of a step: by the gradient's sign, or along the gradient.
    start : "clean", "random" or "lower"
        At x, at random in the ball (needs `seeds`), or at x - epsilon, which is for "linf".
    seeds : (N,) int64, optional
        One for each image, so that a result does not depend on batch-mates.
    objective : callable, optional
        The quantity to maximise, for every pixel; the cross-entropy by default.
    stop_early : bool
        Take an image out, as it is, once none of its valid pixels is correct: it costs no further forward or backward. The
        host then waits for the device at every step.
    observe : callable, optional
        Receives, at every step, the output and the input gradient as computed.

    Yields
    ------
    (step, images) : (int, (N, 3, H, W) float)
        First (0, the start), then each step 1..n; always in the ball and in [0, 1].
    """
    size = epsilon / max(steps, 1) if alpha == "eps/n" else alpha
    if epsilon < 0 or steps < 0 or size < 0:
        raise ValueError(f"epsilon {epsilon}, alpha {alpha} and steps {steps} must not be negative")
    bound, clean = NORMS[norm], images
    current = attack_start(start, images, epsilon, seeds, norm).detach()
    yield 0, current
    indices = torch.arange(len(images), device=images.device)  # of the images that are still attacked
    attacked, truth = current, labels
    for step in range(1, steps + 1):
        if len(indices):
            output, gradient = input_gradient(
                model, attacked, truth, indices, objective, step=step, steps=steps, observe=observe, skip_fooled=stop_early
            )
            if stop_early and not output.not_fooled.all():
                kept = output.not_fooled
                attacked, truth, indices, gradient, clean = (part[kept] for part in (attacked, truth, indices, gradient, clean))
            attacked = bound.project(attacked + size * bound.direction(gradient), clean, epsilon)
            current = attacked if len(indices) == len(images) else current.index_copy(0, indices, attacked)
        yield step, current


def attack_start(start: Start, images: Tensor, epsilon: float, seeds: Tensor | None, norm: NormName = "linf") -> Tensor:
    """
    Return where an attack begins: in the ball and in [0, 1].

    Parameters
    ----------
    start, images, epsilon, seeds, norm
        As for `signed_gradient_ascent`.
    """
    if start == "clean":
        return images
    if start == "lower":
        if norm != "linf":
            raise ValueError("the start at x - epsilon is for the maximum norm: use clean or random")
        return (images - epsilon).clamp(0, 1)
    if seeds is None or len(seeds) != len(images):
        raise ValueError("a random start needs one seed for each image")
    generators = [torch.Generator().manual_seed(seed) for seed in seeds.tolist()]
    return NORMS[norm].draw(images, epsilon, generators).clamp(0, 1)
