"""
Batches for training and for evaluation.

Every random draw comes from (seed, epoch, position in the epoch) alone. So the batches are the same for any number of
workers, and a run that resumes in the middle of an epoch gets those that it would have got.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from ddcat_train.data.augment import F32, Augment
from ddcat_train.data.base import U8, Dataset, Sample
from ddcat_train.errors import DataError

__all__ = ["Batch", "batches_per_epoch", "evaluation_batches", "train_batches"]


@dataclass(frozen=True)
class Batch:
    """
    What one update is computed from.

    Attributes
    ----------
    images : (N, 3, H, W) float32
        RGB in [0, 1].
    labels : (N, H, W) int64
        Values in 0..K-1, or 255 = ignored.
    seeds : (N,) int64
        For the random start of an attack on each image; not negative.
    """

    images: torch.Tensor
    labels: torch.Tensor
    seeds: torch.Tensor


def batches_per_epoch(dataset: Dataset, batch_size: int) -> int:
    """Count the batches in which every image is seen at least once."""
    return -(-len(dataset) // batch_size)


def train_batches(
    dataset: Dataset, augment: Augment, *, batch_size: int, seed: int, epoch: int, first: int = 0, workers: int = 0
) -> Iterator[Batch]:
    """
    Give the batches of an epoch, all full: the last is filled up from the start of the epoch's order, over and over if need be.

    Parameters
    ----------
    dataset : Dataset
    augment : callable
        Its results must be of one size.
    batch_size : int
    seed, epoch : int
        Not negative.
    first : int
        Number of batches to leave out at the start, for a run that resumes.
    workers : int
        Processes that read ahead; 0: none, the reading is done when the batch is asked for.

    Raises
    ------
    DataError
        Where a pair cannot be read.
    """
    positions = _Positions(dataset, augment, seed, epoch)
    loader = DataLoader(
        positions,
        sampler=range(first * batch_size, batches_per_epoch(dataset, batch_size) * batch_size),
        batch_size=batch_size,
        num_workers=workers,
        collate_fn=_collate,
        generator=torch.Generator(),  # without one, the loader would draw from the state that dropout draws from
    )
    for batch in loader:
        if isinstance(batch, DataError):
            raise batch
        yield batch


def evaluation_batches(
    dataset: Dataset, *, batch_size: int, limit: int | None = None
) -> Iterator[tuple[list[str], torch.Tensor, torch.Tensor]]:
    """
    Give whole images in the order of the list; neighbours of one size are batched together.

    Parameters
    ----------
    dataset : Dataset
    batch_size : int
        Most images in a batch.
    limit : int or None
        Take that many images only, spread evenly over the whole split (the first ones of a list are often one scene).

    Yields
    ------
    names : list of str
    images : (N, 3, H, W) float32
        RGB in [0, 1].
    labels : (N, H, W) int64

    Raises
    ------
    DataError
        Where a pair cannot be read.
    """
    count = len(dataset) if limit is None else min(limit, len(dataset))
    waiting: list[Sample] = []
    for step in range(count):
        sample = dataset.read((2 * step + 1) * len(dataset) // (2 * count))  # the middle one of each of `count` equal parts
        if waiting and (len(waiting) == batch_size or waiting[0].labels.shape != sample.labels.shape):
            yield _whole(waiting)
            waiting = []
        waiting.append(sample)
    if waiting:
        yield _whole(waiting)


class _Positions(TorchDataset[tuple[F32, U8, int] | DataError]):
    """The positions 0, 1, ... of an epoch; beyond its end the order starts anew, with other draws."""

    def __init__(self, dataset: Dataset, augment: Augment, seed: int, epoch: int) -> None:
        self.dataset = dataset
        self.augment = augment
        self.seed = seed
        self.epoch = epoch
        self.order = _generator(seed, epoch).permutation(len(dataset))

    def __getitem__(self, position: int) -> tuple[F32, U8, int] | DataError:
        generator = _generator(self.seed, self.epoch, position)
        attack_seed = int(generator.integers(2**63))
        try:
            sample = self.dataset.read(int(self.order[position % len(self.order)]))
        except DataError as error:
            return error  # raised in the main process: torch would wrap it into the traceback of the worker
        return *self.augment(sample, generator), attack_seed


def _generator(seed: int, *key: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def _collate(items: list[tuple[F32, U8, int] | DataError]) -> Batch | DataError:
    good: list[tuple[F32, U8, int]] = []
    for item in items:
        if isinstance(item, DataError):
            return item
        good.append(item)
    images, labels, seeds = zip(*good, strict=True)
    return Batch(_to_nchw(np.stack(images)), torch.from_numpy(np.stack(labels)).long(), torch.tensor(seeds))


def _whole(samples: list[Sample]) -> tuple[list[str], torch.Tensor, torch.Tensor]:
    images = np.stack([sample.image for sample in samples]).astype(np.float32) / np.float32(255)
    labels = torch.from_numpy(np.stack([sample.labels for sample in samples])).long()  # (N, H, W)
    return [sample.name for sample in samples], _to_nchw(images), labels


def _to_nchw(images: F32) -> torch.Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()  # (N, H, W, 3) -> (N, 3, H, W)
