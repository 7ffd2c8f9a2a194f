"""
Batches for training and for evaluation.

Every random draw comes from (seed, epoch, position in the epoch) alone. So the batches are the same for any number of
workers, and a run that resumes in the middle of an epoch gets the batches of an uninterrupted one.
"""

import dataclasses
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
import torch
from torch.utils.data import Dataset as TorchDataset

from ddcat.error_text import first_line
from ddcat_train.data.augment import F32, Augment
from ddcat_train.data.dataset import U8, Dataset, Sample
from ddcat_train.data.readers import machine_fails, read_ahead, remedy
from ddcat_train.errors import DataError

__all__ = [
    "Batch",
    "Skipped",
    "as_tensors",
    "batches_per_epoch",
    "evaluation_batches",
    "evaluation_plan",
    "read_samples",
    "read_whole",
    "train_batches",
]


class Skipped(NamedTuple):
    """An unreadable image that was replaced by another."""

    name: str
    fault: str  # one line for the user, which names the file


@dataclass(frozen=True)
class Batch:
    """
    The images and labels of one update.

    Attributes
    ----------
    images : (N, 3, H, W) float32
        RGB in [0, 1].
    labels : (N, H, W) int64
        Values in 0..K-1, or 255 = ignored.
    seeds : (N,) int64
        For the random start of an attack on each image; not negative; always on the CPU, where they are used.
    names : tuple of str
        Names of the images; empty for a synthetic batch.
    skipped : tuple of Skipped
        Images that others of this batch replace.
    """

    images: torch.Tensor
    labels: torch.Tensor
    seeds: torch.Tensor
    names: tuple[str, ...] = ()
    skipped: tuple[Skipped, ...] = ()

    def pin_memory(self) -> Self:
        """Move to page-locked memory, so that the host does not wait for the copy to the device; torch's loader calls this."""
        return dataclasses.replace(self, images=self.images.pin_memory(), labels=self.labels.pin_memory())


def batches_per_epoch(dataset: Dataset, batch_size: int, *, drop_last: bool = False) -> int:
    """Count the batches in which every image is seen at least once; with `drop_last`, the full ones."""
    return len(dataset) // batch_size if drop_last else -(-len(dataset) // batch_size)


def train_batches(
    dataset: Dataset,
    augment: Augment,
    *,
    batch_size: int,
    seed: int,
    steps: int,
    first: int = 0,
    workers: int = 0,
    skip_corrupt: bool = False,
    drop_last: bool = False,
    pin: bool = False,
    rank_indices: Sequence[int] | None = None,
) -> Generator[Batch, None, None]:
    """
    Yield the batches of a run, all full: the last of an epoch is filled up from the start of its order, or left out.

    Prefetching continues across epochs: the whole run is one stream.

    Parameters
    ----------
    augment : callable
        Its results must have one size.
    batch_size : int
        Images of a whole batch.
    seed : int
        Not negative.
    steps : int
        Number of batches of the whole run.
    first : int
        Number of batches to leave out at the start, for a run that resumes.
    workers : int
        Processes that prefetch; 0: images are read when the batch is asked for.
    skip_corrupt : bool
        Replace a pair with a missing or damaged file by the next sound one of the epoch's order, with the draws of its place.
        Errors of other kinds, as in `augment`, are always raised.
    drop_last : bool
        Leave out the images at the end of an epoch's order that make no full batch.
    pin : bool
        Yield images and labels in page-locked memory.
    rank_indices : sequence of int, optional
        Indices in 0..batch_size-1 of a rank's images: only these of every batch are read.

    Raises
    ------
    DataError
        Where a pair cannot be read or augmented; with `skip_corrupt`, where none of them can be read.
    """
    per_epoch = batches_per_epoch(dataset, batch_size, drop_last=drop_last) * batch_size
    places = _IndexedSamples(dataset, augment, seed, per_epoch, skip_corrupt=skip_corrupt)
    rank_indices = range(batch_size) if rank_indices is None else rank_indices
    sampler = (step * batch_size + place for step in range(first, steps) for place in rank_indices)
    batches = read_ahead(places, sampler, _collate, batch_size=len(rank_indices), workers=workers, pin=pin)
    with closing(batches):
        for batch in batches:
            if isinstance(batch, DataError):
                raise batch
            yield batch


def evaluation_batches(
    dataset: Dataset, *, batch_size: int, limit: int | None = None, rank: int = 0, ranks: int = 1
) -> Iterator[tuple[list[str], torch.Tensor, torch.Tensor]]:
    """
    Yield whole images in the order of the list; neighbours of one size are batched together.

    Parameters
    ----------
    batch_size : int
        Largest number of images in a batch.
    limit : int or None
        Number of images, spread evenly over the whole split (the first ones of a list are often one scene).
    rank, ranks : int
        Only the images at rank, rank + ranks, rank + 2 ranks, ... are read.

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
    for indices in evaluation_plan(dataset, batch_size=batch_size, limit=limit, rank=rank, ranks=ranks):
        yield read_whole(dataset, indices)


def evaluation_plan(
    dataset: Dataset, *, batch_size: int, limit: int | None = None, rank: int = 0, ranks: int = 1
) -> Iterator[list[int]]:
    """Yield the indices of each batch of `evaluation_batches`, from the heads of the files alone; its parameters and errors."""
    count = len(dataset) if limit is None else min(limit, len(dataset))
    waiting: list[int] = []
    shape: tuple[int, int] | None = None
    for step in range(rank, count, ranks):
        index = (2 * step + 1) * len(dataset) // (2 * count)  # the middle one of each of `count` equal parts
        before, shape = shape, dataset.size(index)
        if waiting and (len(waiting) == batch_size or before != shape):
            yield waiting
            waiting = []
        waiting.append(index)
    if waiting:
        yield waiting


def read_samples(dataset: Dataset, indices: Sequence[int]) -> list[Sample]:
    """Read pairs; a DataError names the one that cannot be read."""
    return [_read(dataset, index) for index in indices]


def read_whole(dataset: Dataset, indices: Sequence[int]) -> tuple[list[str], torch.Tensor, torch.Tensor]:
    """Read pairs of one size: names, images and labels as `evaluation_batches` gives them."""
    return as_tensors(read_samples(dataset, indices))


class _Item(NamedTuple):
    image: F32
    labels: U8
    seed: int
    name: str
    skipped: Skipped | None


class _IndexedSamples(TorchDataset[_Item | DataError]):
    """The samples 0, 1, ... of a run. In an epoch that is longer than the order, the order starts again, with other draws."""

    def __init__(self, dataset: Dataset, augment: Augment, seed: int, per_epoch: int, *, skip_corrupt: bool) -> None:
        self.dataset = dataset
        self.augment = augment
        self.seed = seed
        self.per_epoch = per_epoch
        self.skip_corrupt = skip_corrupt
        self.epoch, self.order = -1, np.zeros(0, np.int64)

    def __getitem__(self, place: int) -> _Item | DataError:
        epoch, position = divmod(place, self.per_epoch)
        if epoch != self.epoch:
            self.epoch, self.order = epoch, _generator(self.seed, epoch).permutation(len(self.dataset))
        generator = _generator(self.seed, epoch, position)
        attack_seed = int(generator.integers(2**63))
        try:
            index, sample, skipped = self._read(position)
            with _named(self.dataset, index):
                return _Item(*self.augment(sample, generator), attack_seed, sample.name, skipped)
        except DataError as error:  # raised in the main process: torch would wrap it into the traceback of the worker
            return error

    def _read(self, position: int) -> tuple[int, Sample, Skipped | None]:
        """Read the pair of a position, or the next readable one: only files that the data set itself refuses are skipped."""
        first: Skipped | None = None
        for place in range(position, position + len(self.order)):
            index = int(self.order[place % len(self.order)])
            with _named(self.dataset, index):
                try:
                    return index, self.dataset.read(index), first
                except DataError as error:
                    if not self.skip_corrupt or machine_fails(error):
                        raise
                    first = first or Skipped(self.dataset.pairs[index].name, str(error))
        assert first is not None  # for a data set is not empty
        raise DataError(f"none of the {len(self.order)} pairs of {self.dataset.split} can be read, for example: {first.fault}")


def _read(dataset: Dataset, index: int) -> Sample:
    with _named(dataset, index):
        return dataset.read(index)


@contextmanager
def _named(dataset: Dataset, index: int) -> Iterator[None]:
    """Turn whatever goes wrong into a `DataError` that names the pair, SystemExit and panics of Rust libraries included."""
    try:
        yield
    except (DataError, KeyboardInterrupt):  # the second of the user
        raise
    except BaseException as error:
        raise _failed(dataset, index, error) from error


def _failed(dataset: Dataset, index: int, error: BaseException) -> DataError:
    """Return the error for an image that could not be prepared though its file is sound."""
    reason = " ".join(first_line(error).split())[:300]
    return DataError(
        f"{dataset.pairs[index].image} could not be prepared ({reason}): "
        + (remedy(error) or "leave the image out, or make it smaller (data.long_side)")
    )


def _generator(seed: int, *key: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def _collate(items: list[_Item | DataError]) -> Batch | DataError:
    good: list[_Item] = []
    for item in items:
        if isinstance(item, DataError):
            return item
        good.append(item)
    images, labels, seeds, names, skipped = zip(*good, strict=True)
    try:
        return Batch(
            _to_nchw(np.stack(images)),
            torch.from_numpy(np.stack(labels)).long(),
            torch.tensor(seeds),
            names,
            tuple(one for one in skipped if one is not None),
        )
    except Exception as error:
        reason = " ".join(first_line(error).split())[:300]
        helps = remedy(error) or "images and labels of a batch must be of one size"
        return DataError(f"{names[0]} and {len(names) - 1} others make no batch ({reason}): {helps}")


def as_tensors(samples: Sequence[Sample]) -> tuple[list[str], torch.Tensor, torch.Tensor]:
    """Give names, images and labels of samples of one size, as `evaluation_batches` gives them."""
    images = np.stack([sample.image for sample in samples]).astype(np.float32) / np.float32(255)
    labels = torch.from_numpy(np.stack([sample.labels for sample in samples])).long()  # (N, H, W)
    return [sample.name for sample in samples], _to_nchw(images), labels


def _to_nchw(images: F32) -> torch.Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()  # (N, H, W, 3) -> (N, 3, H, W)
