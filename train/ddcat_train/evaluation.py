"""Scores of a model on whole images, clean and after n steps of BIM, from one pass."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch

from ddcat.metrics import Counts, confusion_counts
from ddcat_train.attacks import Model, trajectory
from ddcat_train.data import Dataset
from ddcat_train.data.loader import evaluation_batches
from ddcat_train.distributed.ranks import ALONE, Ranks

__all__ = ["EvaluationResult", "evaluate"]


@dataclass(frozen=True)
class EvaluationResult:
    """
    Counts of an evaluation.

    Attributes
    ----------
    names : list of str
        Of the images.
    counts : mapping of int to (I, K, 3) int64
        For each n, the counts of each image and class, as of `ddcat.metrics.confusion_counts`; n = 0 are the clean images.
    """

    names: list[str]
    counts: dict[int, Counts]


def evaluate(
    model: Model,
    dataset: Dataset,
    *,
    epsilon: float,
    alpha: float,
    steps: Iterable[int],
    batch_size: int,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    limit: int | None = None,
    ranks: Ranks = ALONE,
) -> EvaluationResult:
    """
    Attack whole images from x on, and count correct and wrong pixels after some of the steps.

    Each image is attacked as a whole: it has one consistent perturbation. Ignored pixels influence neither the attack nor the
    counts.

    Parameters
    ----------
    model : callable
        Maps images (N, 3, H, W) in [0, 1] to logits (N, K, H, W).
    epsilon, alpha : float
        In [0, 1] units.
    steps : iterable of int
        Numbers of steps n to count after; 0 is the clean image.
    dtype : torch.dtype
        Of the images that the model takes.
    limit : int, optional
        Take that many images, spread evenly over the split.
    ranks : Ranks
        Each evaluates a part of the images; all get the counts of every image.
    """
    numbers = sorted(set(steps))
    names: list[str] = []
    rows: dict[int, list[Counts]] = {n: [] for n in numbers}
    for batch_names, images, labels in evaluation_batches(
        dataset, batch_size=batch_size, limit=limit, rank=ranks.rank, ranks=ranks.size
    ):
        truth = labels.numpy()
        for n, _, predictions in trajectory(
            model, images.to(device, dtype), labels.to(device), epsilon=epsilon, alpha=alpha, steps=numbers[-1]
        ):
            if n in rows:
                labelled = predictions.cpu().numpy()
                rows[n] += [confusion_counts(t, p, len(dataset.classes)) for t, p in zip(truth, labelled, strict=True)]
        names += batch_names
    shares = ranks.gather((names, rows))
    deal = [divmod(index, ranks.size) for index in range(sum(len(share) for share, _ in shares))]  # (place, rank)
    return EvaluationResult(
        [shares[rank][0][place] for place, rank in deal],
        {n: np.stack([shares[rank][1][n][place] for place, rank in deal]) for n in numbers},
    )
