"""The probe for masked gradients: small attacks on a few images, whose figures `raise_alarms` compares."""

import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ddcat.classes import IGNORE_INDEX
from ddcat.metrics import Counts, confusion_counts, miou, pixel_accuracy
from ddcat_bench.attack.alarms import LARGE_EPSILON
from ddcat_bench.attack.results import GradientShares, PointName, Probe, ProbePoint
from ddcat_bench.errors import BenchError
from ddcat_train.attacks import Model, cospgd, dla, eval_mode, sign_noise, square, trajectory
from ddcat_train.data import Dataset
from ddcat_train.data.loader import evaluation_batches
from ddcat_train.losses import pixel_cross_entropy
from ddcat_train.seeds import derive_seed

__all__ = ["FORWARDS", "run_probe"]

Kind = tuple[PointName, float, int]  # name, epsilon, steps or queries

FEW, MORE, LARGE = 5, 20, 20  # steps: of PGD, of PGD, of CosPGD at 64/255
NOISE, SQUARE, DLA = 5, 50, 50  # queries; a forward costs a third of a step, so that all of it costs about 75 steps an image
FORWARDS = MORE + LARGE + NOISE + SQUARE + DLA + 8  # about how often the model sees an image: for the progress


def run_probe(
    model: Model,
    dataset: Dataset,
    *,
    epsilon: float,
    images: int = 6,
    seed: int = 0,
    batch_size: int = 8,
    device: torch.device | None = None,
) -> Probe:
    """
    Measure what the masking alarms need: PGD, also with more steps, CosPGD at 64/255, black-box attacks, missing gradients.

    The images are spread evenly over the split; the seed of each follows from `seed` and from its place among them. The
    model is on `device`, the CPU by default. Raises BenchError if every pixel of the images is ignored, and DataError.

    Parameters
    ----------
    model : callable
        Maps images (N, 3, H, W) in [0, 1] to logits (N, K, H, W).
    epsilon : float
        L-infinity bound of all but the large one, in [0, 1] units.
    """
    began = time.monotonic()
    counts: dict[Kind, list[Counts]] = {}
    missing: list[_Missing] = []
    done = 0
    for names, pictures, labels in evaluation_batches(dataset, batch_size=batch_size, limit=images):
        pixels, truth = pictures.to(device, memory_format=torch.channels_last), labels.to(device)
        seeds = torch.tensor([derive_seed(seed, place) for place in range(done, done + len(names))])
        for kind, predictions in _attacks(model, pixels, truth, epsilon, seeds).items():
            pairs = zip(labels.numpy(), predictions.cpu().numpy(), strict=True)
            counts.setdefault(kind, []).extend(confusion_counts(t, p, len(dataset.classes)) for t, p in pairs)
        missing += _missing_gradients(model, pixels, truth)
        done += len(names)
    if not missing:
        raise BenchError("every pixel of the probed images is ignored, and none can be attacked: use images with labels")
    return Probe(
        images=done,
        seed=seed,
        points=tuple(_point(kind, np.sum(each, axis=0)) for kind, each in counts.items()),
        gradients=_shares(missing),
        seconds=time.monotonic() - began,
    )


def _attacks(model: Model, pixels: Tensor, truth: Tensor, epsilon: float, seeds: Tensor) -> dict[Kind, Tensor]:
    """Return the model's labels of a batch under each attack, (N, H, W) int64."""

    def predict(images: Tensor) -> Tensor:
        with torch.no_grad(), eval_mode(model):
            return model(images).argmax(1)

    labels: dict[Kind, Tensor] = {("clean", 0.0, 0): predict(pixels)}
    # A quarter of the ball a step crosses it in a few and leaves the others to look for a better place.
    for steps, _, predictions in trajectory(
        model, pixels, truth, epsilon=epsilon, alpha=epsilon / 4, steps=MORE, start="random", seeds=seeds
    ):
        if steps in (FEW, MORE):
            labels["PGD", epsilon, steps] = predictions
    # Plain PGD spends itself on pixels that are wrong already, and leaves even sound models some that are right.
    large = cospgd(
        model, pixels, truth, epsilon=LARGE_EPSILON, alpha=LARGE_EPSILON / 4, steps=LARGE, start="random", seeds=seeds
    )
    labels["CosPGD", LARGE_EPSILON, LARGE] = predict(large)
    black: tuple[tuple[PointName, Tensor, int], ...] = (
        ("noise", sign_noise(predict, pixels, truth, epsilon=epsilon, queries=NOISE, seeds=seeds), NOISE),
        ("Square", square(model, pixels, truth, epsilon=epsilon, queries=SQUARE, seeds=seeds), SQUARE),
        ("DLA", dla(predict, pixels, truth, epsilon=epsilon, queries=DLA, seeds=seeds), DLA),
    )
    for name, attacked, queries in black:
        labels[name, epsilon, queries] = predict(attacked)
    return labels


class _Missing(NamedTuple):
    """The missing parts of an image's gradient."""

    zero: bool
    non_finite: bool
    zero_pixels: int
    pixels: int


def _missing_gradients(model: Model, pixels: Tensor, truth: Tensor) -> list[_Missing]:
    """Check the gradient on the clean images; images without a counted pixel are left out."""
    with torch.enable_grad(), eval_mode(model):
        leaf = pixels.detach().requires_grad_()
        logits = model(leaf)
        at_input, at_logits = torch.autograd.grad(pixel_cross_entropy(logits, truth).sum(), (leaf, logits))
    known = truth != IGNORE_INDEX  # (N, H, W)
    flat = at_input.flatten(1)
    columns = (
        (flat == 0).all(1),
        ~flat.isfinite().all(1),
        ((at_logits == 0).all(1) & known).sum((1, 2)),
        known.sum((1, 2)),
    )
    each = (_Missing(*one) for one in zip(*(column.tolist() for column in columns), strict=True))
    return [one for one in each if one.pixels]


def _shares(missing: Sequence[_Missing]) -> GradientShares:
    return GradientShares(
        zero_images=sum(one.zero for one in missing) / len(missing),
        non_finite_images=sum(one.non_finite for one in missing) / len(missing),
        zero_pixels=sum(one.zero_pixels for one in missing) / sum(one.pixels for one in missing),
    )


def _point(kind: Kind, counts: Counts) -> ProbePoint:
    name, epsilon, steps = kind
    return ProbePoint(name=name, epsilon=epsilon, steps=steps, miou=miou(counts), pixel_accuracy=pixel_accuracy(counts))
