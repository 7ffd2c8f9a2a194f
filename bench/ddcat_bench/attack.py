"""`ddcat-bench attack`: what attacks leave of a checkpoint's main branch."""

import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ddcat.scores import Counts, count
from ddcat_bench.results import AttackName, AttackResult, AttackRow, Scores, SuiteName
from ddcat_bench.subjects import describe_checkpoint, describe_data, describe_environment, main_branch
from ddcat_train.attacks import Model, to_8_bit, trajectory
from ddcat_train.checkpoints import Checkpoint
from ddcat_train.data import Dataset
from ddcat_train.data.loader import evaluation_batches
from ddcat_train.names import Start

__all__ = ["BIM", "PROTOCOL", "SUITES", "Plan", "answers", "count_each", "grey_levels", "run_suite"]

PROTOCOL = (
    "Whole images, not tiles: one consistent perturbation of each, made with full knowledge of the main branch. Ignored pixels "
    "are neither attacked for gain nor counted. mIoU sums the counts over all images first; classes that are neither labelled "
    "nor predicted are left out of the mean. 8-bit rows: the perturbation rounded toward zero to whole grey levels, as a "
    "server would receive the image."
)


class Plan(NamedTuple):
    """
    One pass of an attack.

    Attributes
    ----------
    name : str
    epsilon, alpha : float
        In [0, 1] units.
    start : Start
    counted : tuple of int
        The numbers of steps after which it is scored, ascending; 0 with ``start="clean"`` are the clean images.
    """

    name: AttackName
    epsilon: float
    alpha: float
    start: Start
    counted: tuple[int, ...]


BIM = Plan("BIM", epsilon=0.03, alpha=0.01, start="clean", counted=(0, 1, 2, 3, 4, 5, 6, 7))  # the paper's Eq. 2, Table 1
PGD_20 = Plan("PGD", epsilon=8 / 255, alpha=2 / 255, start="random", counted=(20,))

SUITES: dict[SuiteName, tuple[Plan, ...]] = {
    "quick": (BIM,),
    "paper": (BIM, PGD_20),
}


def run_suite(
    checkpoint: Checkpoint,
    dataset: Dataset,
    *,
    suite: SuiteName = "quick",
    batch_size: int = 8,
    limit: int | None = None,
    device: torch.device | None = None,
    advance: Callable[[int], None] = lambda images: None,
) -> AttackResult:
    """
    Attack the main branch on whole images and score what is left, as floats and as 8-bit images.

    Parameters
    ----------
    checkpoint : Checkpoint
    dataset : Dataset
        With the checkpoint's classes.
    suite : str
        A key of `SUITES`.
    batch_size : int
    limit : int, optional
        Take that many images, spread evenly over the split.
    device : torch.device, optional
        The CPU by default.
    advance : callable, optional
        Is told the number of images that were finished.

    Raises
    ------
    DataError
        Where a pair cannot be read.
    BenchError
        Where every pixel is ignored.
    """
    device = device or torch.device("cpu")
    began = time.monotonic()
    network = main_branch(checkpoint, device)
    place = {pair.name: index for index, pair in enumerate(dataset.pairs)}
    classes = len(dataset.classes)
    counts: dict[tuple[Plan, int, bool], list[Counts]] = {}
    judged: list[str] = []
    for names, images, labels in evaluation_batches(dataset, batch_size=batch_size, limit=limit):
        pixels, truth = images.to(device, memory_format=torch.channels_last), labels.to(device)
        seeds = torch.tensor([place[name] for name in names])
        for plan in SUITES[suite]:
            for step, adversarial, predictions in trajectory(
                network,
                pixels,
                truth,
                epsilon=plan.epsilon,
                alpha=plan.alpha,
                steps=plan.counted[-1],
                start=plan.start,
                seeds=seeds,
            ):
                if step not in plan.counted:
                    continue
                counts.setdefault((plan, step, False), []).extend(count_each(labels, predictions, classes))
                if step:
                    received = answers(network, to_8_bit(adversarial, pixels))
                    counts.setdefault((plan, step, True), []).extend(count_each(labels, received, classes))
        judged += names
        advance(len(names))
    usual = checkpoint.description.val
    order = sorted(counts, key=lambda key: key[2])  # stable: the plans and steps stay in their order
    return AttackResult(
        checkpoint=describe_checkpoint(checkpoint),
        data=describe_data(dataset, judged, usual_list=None if usual is None else usual.list_sha256),
        protocol=PROTOCOL,
        suite=suite,
        rows=tuple(_row(*key, Scores.of(np.stack(counts[key]))) for key in order),
        environment=describe_environment(device, time.monotonic() - began),
    )


def answers(model: Model, received: Tensor) -> Tensor:
    """
    Labels of 8-bit images.

    Parameters
    ----------
    model : callable
    received : (N, 3, H, W) uint8

    Returns
    -------
    (N, H, W) int64
    """
    with torch.no_grad():
        return model(received.float() / 255).argmax(1)


def count_each(labels: Tensor, predictions: Tensor, classes: int) -> Iterable[Counts]:
    """Count each image of a batch: see `ddcat.scores.count`."""
    return [count(t, p, classes) for t, p in zip(labels.cpu().numpy(), predictions.cpu().numpy(), strict=True)]


def grey_levels(epsilon: float) -> int:
    """Whole grey levels that 8-bit images may differ by under a bound: 7 for 0.03."""
    return int(to_8_bit(torch.full((1, 3, 1, 1), epsilon), torch.zeros(1, 3, 1, 1)).max())


def _row(plan: Plan, steps: int, eight_bit: bool, scores: Scores) -> AttackRow:
    clean = steps == 0 and plan.start == "clean"
    epsilon = 0.0 if clean else plan.epsilon
    return AttackRow(
        name="clean" if clean else plan.name,
        epsilon=epsilon,
        alpha=0.0 if clean else plan.alpha,
        steps=steps,
        start=plan.start,
        eight_bit=eight_bit,
        grey_levels=float(grey_levels(epsilon)) if eight_bit else epsilon * 255,
        scores=scores,
    )
