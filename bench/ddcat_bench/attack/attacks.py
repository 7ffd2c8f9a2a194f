"""Every attack of the suites in one form: from a spec and a batch to adversarial images."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ddcat_bench.attack.suites import SEA_LOSSES, AttackSpec, SpecName
from ddcat_train.attacks import Model, cospgd, dla, sea, segpgd, sign_noise, square, trajectory, tsallis_pgd

__all__ = ["ATTACKS", "AdversarialImages", "AttackBatch", "Meter", "attack"]


class AdversarialImages(NamedTuple):
    """Adversarial images, and the labels that the attacked network gives them where they are known already."""

    images: Tensor  # (N, 3, H, W)
    predictions: Tensor | None  # (N, H, W)


class AttackBatch(NamedTuple):
    """A batch to be attacked."""

    images: Tensor  # (N, 3, H, W) float32: in [0, 1]
    labels: Tensor  # (N, H, W) int64
    seeds: Tensor  # (N,) int64
    class_pixels: Tensor | None = None  # (K,) int64 or None: number of training pixels of each class; SEA needs them
    # the labels of each image at the size of its file, by which it is scored; None: it is scored by `labels`
    full_labels: tuple[npt.NDArray[np.uint8], ...] | None = None


class Meter:
    """Counts each image that a network sees, for the progress of long attacks; never more than are allotted."""

    def __init__(self, advance: Callable[[int], None]) -> None:
        self._advance = advance
        self._left = 0

    def watch(self, network: Model) -> Model:
        """Wrap a network so that each image that it sees is counted."""

        def watched(images: Tensor) -> Tensor:
            logits = network(images)
            self._tell(len(images))
            return logits

        return watched

    def allot(self, images: int) -> None:
        """Announce how many images are about to be seen; the rest of those before counts as seen."""
        self._tell(self._left)
        self._left = images

    def _tell(self, images: int) -> None:
        counted = min(images, self._left)
        self._left -= counted
        if counted:
            self._advance(counted)


def attack(model: Model, spec: AttackSpec, victims: AttackBatch) -> Iterator[AdversarialImages]:
    """Make a spec's adversarial images on a model, images to logits; they come for each of the spec's cases, in their order."""
    return ATTACKS[spec.name](model, spec, victims)


def _given(spec: AttackSpec, victims: AttackBatch) -> dict[str, Any]:
    return {
        "epsilon": spec.epsilon,
        "alpha": spec.alpha,
        "steps": spec.counted[-1],
        "start": spec.start,
        "seeds": victims.seeds,
        "stop_early": True,
    }


def _steps(model: Model, spec: AttackSpec, victims: AttackBatch) -> Iterator[AdversarialImages]:
    for steps, images, predictions in trajectory(model, victims.images, victims.labels, **_given(spec, victims)):
        if steps in spec.counted:
            yield AdversarialImages(images, predictions)


def _weighted(make: Callable[..., Tensor]) -> Callable[[Model, AttackSpec, AttackBatch], Iterator[AdversarialImages]]:
    """Wrap an attack whose weights depend on the number of steps, so that its last step alone is scored."""

    def made(model: Model, spec: AttackSpec, victims: AttackBatch) -> Iterator[AdversarialImages]:
        yield AdversarialImages(make(model, victims.images, victims.labels, **_given(spec, victims)), None)

    return made


def _sea(model: Model, spec: AttackSpec, victims: AttackBatch) -> Iterator[AdversarialImages]:
    if victims.class_pixels is None:
        raise ValueError("SEA needs the number of training pixels of each class")
    images = sea(
        model,
        victims.images,
        victims.labels,
        epsilon=spec.epsilon,
        steps=spec.counted[-1],
        seeds=victims.seeds,
        class_pixels=victims.class_pixels,
    )
    yield from (AdversarialImages(images[loss], None) for loss in SEA_LOSSES)


def _square(model: Model, spec: AttackSpec, victims: AttackBatch) -> Iterator[AdversarialImages]:
    queries = spec.counted[-1]
    yield AdversarialImages(
        square(model, victims.images, victims.labels, epsilon=spec.epsilon, queries=queries, seeds=victims.seeds), None
    )


def _from_labels(search: Callable[..., Tensor]) -> Callable[[Model, AttackSpec, AttackBatch], Iterator[AdversarialImages]]:
    """Wrap an attack that sees predicted labels alone."""

    def made(model: Model, spec: AttackSpec, victims: AttackBatch) -> Iterator[AdversarialImages]:
        def predict(images: Tensor) -> Tensor:
            with torch.no_grad():
                return model(images).argmax(1)

        yield AdversarialImages(
            search(
                predict,
                victims.images,
                victims.labels,
                epsilon=spec.epsilon,
                queries=spec.counted[-1],
                seeds=victims.seeds,
                eight_bit=spec.eight_bit,
            ),
            None,
        )

    return made


ATTACKS: dict[SpecName, Callable[[Model, AttackSpec, AttackBatch], Iterator[AdversarialImages]]] = {
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
