"""From a plan to adversarial images: every attack of the suites in one form."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ddcat_bench.attack.suites import SEA_LOSSES, Plan, PlanName
from ddcat_train.attacks import Model, cospgd, dla, sea, segpgd, sign_noise, square, trajectory, tsallis_pgd

__all__ = ["PASSES", "Found", "Meter", "Victims", "attack"]


class Found(NamedTuple):
    """Adversarial images, and the labels that the attacked network gives them where they are known already."""

    images: Tensor  # (N, 3, H, W)
    predictions: Tensor | None  # (N, H, W)


class Victims(NamedTuple):
    """
    A batch to be attacked.

    Attributes
    ----------
    images : (N, 3, H, W) float32
        In [0, 1].
    labels : (N, H, W) int64
    seeds : (N,) int64
    class_pixels : (K,) int64 or None
        How many training pixels there are of each class; SEA needs them.
    """

    images: Tensor
    labels: Tensor
    seeds: Tensor
    class_pixels: Tensor | None = None


class Meter:
    """Tells of each image that a network sees, so that long attacks show their progress; never of more than are allotted."""

    def __init__(self, advance: Callable[[int], None]) -> None:
        self._advance = advance
        self._left = 0

    def watch(self, network: Model) -> Model:
        """Give a network whose images are told of."""

        def watched(images: Tensor) -> Tensor:
            logits = network(images)
            self._tell(len(images))
            return logits

        return watched

    def allot(self, images: int) -> None:
        """Say how many images are about to be seen; what is left of those before counts as seen."""
        self._tell(self._left)
        self._left = images

    def _tell(self, images: int) -> None:
        told = min(images, self._left)
        self._left -= told
        if told:
            self._advance(told)


def attack(model: Model, plan: Plan, victims: Victims) -> Iterator[Found]:
    """
    Make a plan's adversarial images.

    Parameters
    ----------
    model : callable
        Images to logits; what the attack is made on.
    plan : Plan
    victims : Victims

    Yields
    ------
    Found
        For each of the plan's cases, in their order.
    """
    return PASSES[plan.name](model, plan, victims)


def _given(plan: Plan, victims: Victims) -> dict[str, Any]:
    return {
        "epsilon": plan.epsilon,
        "alpha": plan.alpha,
        "steps": plan.counted[-1],
        "start": plan.start,
        "seeds": victims.seeds,
        "stop_early": True,
    }


def _steps(model: Model, plan: Plan, victims: Victims) -> Iterator[Found]:
    for steps, images, predictions in trajectory(model, victims.images, victims.labels, **_given(plan, victims)):
        if steps in plan.counted:
            yield Found(images, predictions)


def _weighted(make: Callable[..., Tensor]) -> Callable[[Model, Plan, Victims], Iterator[Found]]:
    """Of an attack of which the last step alone is scored, for its weights depend on the number of steps."""

    def made(model: Model, plan: Plan, victims: Victims) -> Iterator[Found]:
        yield Found(make(model, victims.images, victims.labels, **_given(plan, victims)), None)

    return made


def _sea(model: Model, plan: Plan, victims: Victims) -> Iterator[Found]:
    if victims.class_pixels is None:
        raise ValueError("SEA needs the number of training pixels of each class")
    found = sea(
        model,
        victims.images,
        victims.labels,
        epsilon=plan.epsilon,
        steps=plan.counted[-1],
        seeds=victims.seeds,
        class_pixels=victims.class_pixels,
    )
    yield from (Found(found[loss], None) for loss in SEA_LOSSES)


def _square(model: Model, plan: Plan, victims: Victims) -> Iterator[Found]:
    queries = plan.counted[-1]
    yield Found(square(model, victims.images, victims.labels, epsilon=plan.epsilon, queries=queries, seeds=victims.seeds), None)


def _from_labels(search: Callable[..., Tensor]) -> Callable[[Model, Plan, Victims], Iterator[Found]]:
    """Of an attack that sees predicted labels alone."""

    def made(model: Model, plan: Plan, victims: Victims) -> Iterator[Found]:
        def predict(images: Tensor) -> Tensor:
            with torch.no_grad():
                return model(images).argmax(1)

        yield Found(
            search(
                predict,
                victims.images,
                victims.labels,
                epsilon=plan.epsilon,
                queries=plan.counted[-1],
                seeds=victims.seeds,
                eight_bit=plan.eight_bit,
            ),
            None,
        )

    return made


PASSES: dict[PlanName, Callable[[Model, Plan, Victims], Iterator[Found]]] = {
    "BIM": _steps,
    "PGD": _steps,
    "SegPGD": _weighted(segpgd),
    "CosPGD": _weighted(cospgd),
    "TsallisPGD": _weighted(tsallis_pgd),
    "SEA": _sea,
    "Square": _square,
    "DLA": _from_labels(dla),
    "noise": _from_labels(sign_noise),
}
