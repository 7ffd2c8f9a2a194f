"""Changed images, as a server would receive them: of one plan, one after the other of its cases."""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ddcat.classes import IGNORE_INDEX
from ddcat_bench.perturbation.plans import Plan
from ddcat_train.attacks import (
    Model,
    apgd,
    apply_universal,
    dag,
    learn_patch,
    patch_side,
    pgd,
    place_patch,
    universal_perturbation,
)
from ddcat_train.pixels import nearest_8_bit, to_8_bit, to_8_bit_in_l2

__all__ = ["Changed", "Victims", "learn", "make", "smallest_side"]

_WRONG = 0.99  # share of the labelled pixels that the minimal norm makes wrong

Batches = Callable[[], Iterable[tuple[Tensor, Tensor]]]


class Victims(NamedTuple):
    """Images to be changed."""

    images: Tensor  # (N, 3, H, W) float32: in [0, 1]
    labels: Tensor  # (N, H, W) int64
    seeds: Tensor  # (N,) int64


class Changed(NamedTuple):
    """Changed images."""

    images: Tensor  # (N, 3, H, W) uint8
    outside: Tensor | None = None  # (N, H, W) bool or None: pixels that a patch does not cover; None: there is no patch
    # (N, 2) float or None: L2 and L-infinity norm; NaN where no perturbation was found. Of the minimal norm alone
    norms: Tensor | None = None


def smallest_side(sizes: Iterable[tuple[int, int]], share: float) -> int:
    """
    Return the side of a patch that covers at most a share of any of the images.

    Raises AttackError where it does not fit into one of them.
    """
    return min(patch_side(height, width, share) for height, width in sizes)


def learn(
    plan: Plan,
    model: Model,
    batches: Batches,
    *,
    size: tuple[int, int],
    side: int,
    seed: int,
) -> Tensor:
    """
    Learn what is then put onto other images: (C, h, w) float32 on the CPU.

    `batches` gives the batches of an epoch. A universal perturbation has a size, and is repeated over larger images; a patch
    has a side.
    """
    if plan.threat == "universal":
        return universal_perturbation(model, batches, epsilon=plan.bound, epochs=plan.epochs, size=size).cpu()
    return learn_patch(model, batches, side=side, epochs=plan.epochs, seed=seed).cpu()


def make(
    plan: Plan, model: Model | None, victims: Victims, learnt: Tensor | None, *, size: tuple[int, int], side: int
) -> Iterator[Changed]:
    """
    Make the images of a plan's cases, in their order.

    `model` is what it is made on; None for controls. `learnt`, (C, h, w), is the result of `learn` on other images. Random
    perturbations and patches have that size and side.
    """
    images, _, seeds = victims
    if plan.threat == "clean":
        yield Changed(nearest_8_bit(images))
    elif plan.threat == "L2":
        yield from _in_l2(plan, model, victims)
    elif plan.threat == "universal":
        signs = _random(0, (images.shape[1], *size)).sub(0.5).sign() * plan.bound if learnt is None else learnt
        yield Changed(to_8_bit(apply_universal(images, signs.to(images.device)), images))
    elif plan.threat == "patch":
        patches = (
            [None, _random(0, (images.shape[1], side, side)), torch.full((images.shape[1], side, side), 0.5)]
            if learnt is None
            else [learnt]
        )
        yield from (_patched(images, seeds, patch, side) for patch in patches)
    else:
        assert model is not None
        yield from _least(plan, model, victims)


def _in_l2(plan: Plan, model: Model | None, victims: Victims) -> Iterator[Changed]:
    images, labels, seeds = victims
    if model is None:
        size = plan.bound / math.sqrt(images[0].numel())
        attacked = [(images + size * _signs(victims)).clamp(0, 1)]
    else:
        attacked = [
            apgd(model, images, labels, epsilon=plan.bound, steps=steps, norm="l2", seeds=seeds)
            if name == "APGD"
            else pgd(model, images, labels, epsilon=plan.bound, alpha=plan.bound / 4, steps=steps, norm="l2", seeds=seeds)
            for name, steps in plan.steps
        ]
    yield from (Changed(to_8_bit_in_l2(one, images, plan.bound)) for one in attacked)


def _least(plan: Plan, model: Model, victims: Victims) -> Iterator[Changed]:
    images, labels, _ = victims
    [(_, steps)] = plan.steps
    attacked = dag(model, images, labels, steps=steps, share=_WRONG)
    delta = (attacked - images).flatten(1)
    norms = torch.stack([delta.norm(dim=1), delta.abs().amax(1)], 1)  # (N, 2)
    counted = (labels != IGNORE_INDEX).flatten(1).sum(1)
    with torch.no_grad():
        wrong = ((model(images).argmax(1) != labels) & (labels != IGNORE_INDEX)).flatten(1).sum(1)
    # an image comes back as it was where nothing was found, and where nothing was needed
    missing = (norms == 0).all(1) & (wrong < _WRONG * counted)
    yield Changed(nearest_8_bit(attacked), norms=norms.masked_fill(missing[:, None], torch.nan).cpu())
    yield Changed(nearest_8_bit((images + _signs(victims) * norms[:, 1, None, None, None]).clamp(0, 1)))


def _signs(victims: Victims) -> Tensor:
    """Draw random signs for every value of each image, from its seed."""
    drawn = [_random(seed, tuple(victims.images.shape[1:])).sub(0.5).sign() for seed in victims.seeds.tolist()]
    return torch.stack(drawn).to(victims.images.device)


def _random(seed: int, shape: tuple[int, ...]) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def _patched(images: Tensor, seeds: Tensor, patch: Tensor | None, side: int) -> Changed:
    """Put a patch, or none, where each image's seed says: every patch at the same place."""
    shown = torch.zeros((images.shape[1], side, side)) if patch is None else patch
    placed = [
        place_patch(image[None], shown.to(image.device), torch.Generator().manual_seed(seed), vary=False)
        for image, seed in zip(images, seeds.tolist(), strict=True)
    ]
    changed = images if patch is None else torch.cat([one.images for one in placed])
    return Changed(nearest_8_bit(changed), torch.cat([one.outside for one in placed]))
