"""Processes that read ahead: whatever goes wrong in one is one line, and all of them end."""

import dataclasses
import errno
import gc
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any, NoReturn

import cv2
import numpy as np
import pytest
import torch

from ddcat_train.data import open_dataset
from ddcat_train.data.dataset import U8, Dataset, Sample
from ddcat_train.data.loader import evaluation_batches, train_batches
from ddcat_train.data.readers import read_ahead
from ddcat_train.data.synthetic.generate import write_scenes
from ddcat_train.errors import DataError
from ddcat_train.run.stopping import stop_requested


class OddError(Exception):
    """Neither pickled nor unpickled."""

    def __init__(self, one: int, other: int) -> None:
        super().__init__(f"{one} and {other}\nand more")

    def __reduce__(self) -> NoReturn:
        raise TypeError("not to be pickled")


class PanicError(BaseException):
    """As libraries in Rust raise it."""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    root = tmp_path_factory.mktemp("readers") / "scenes"
    write_scenes(root, train=5, val=1, size=(48, 48))
    return open_dataset("scenes", root, "train")


def failing(error: BaseException) -> Callable[[Sample, np.random.Generator], Any]:
    def augment(sample: Sample, generator: np.random.Generator) -> Any:
        if sample.name.endswith("3"):
            raise error
        return sample.image.astype(np.float32) / 255, sample.labels

    return augment


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MemoryError(), r"\(MemoryError\): free some memory"),
        (cv2.error("Insufficient memory: Failed to allocate 9 bytes"), r"Failed to allocate 9 bytes\): free some memory"),
        (cv2.error("SHRT_MAX"), r"\(SHRT_MAX\): leave the image out, or make it smaller"),
        (OSError(errno.EMFILE, "Too many open files"), r"raise the limit of open files \(ulimit -n\)"),
        (OddError(1, 2), r"\(1 and 2\): leave the image out"),
        (KeyError("x"), r"\('x'\): leave the image out"),
        (SystemExit(0), r"\(0\): leave the image out"),
        (PanicError("index out of bounds"), r"\(index out of bounds\): leave the image out"),
    ],
)
def test_whatever_an_image_makes_go_wrong_is_one_line_that_names_it(
    error: BaseException, message: str, workers: int, dataset: Dataset
) -> None:
    batches = train_batches(dataset, failing(error), batch_size=2, seed=0, steps=9, workers=workers, skip_corrupt=True)
    with (
        pytest.raises(DataError, match=f"JPEGImages/.*3.jpg could not be prepared .*{message}") as caught,
        closing(batches),
    ):
        list(batches)
    assert "\n" not in str(caught.value)
    assert multiprocessing.active_children() == []


def test_want_of_files_or_memory_is_not_taken_for_a_corrupt_image(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(self: Dataset, index: int) -> Sample:
        raise DataError("cannot read it: Too many open files") from OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(Dataset, "read", read)
    with pytest.raises(DataError, match=r"^cannot read it"):  # and not "none of the 5 pairs can be read"
        list(train_batches(dataset, failing(MemoryError()), batch_size=2, seed=0, steps=1, skip_corrupt=True))


def test_an_error_in_our_own_code_is_not_taken_for_a_corrupt_image(dataset: Dataset) -> None:
    def decode(values: U8) -> U8:
        raise KeyError("x")

    broken = dataclasses.replace(dataset, decode=decode)
    with pytest.raises(DataError, match=r"^/.*jpg could not be prepared \('x'\)"):
        list(train_batches(broken, failing(KeyError("x")), batch_size=2, seed=0, steps=1, skip_corrupt=True))


@pytest.mark.parametrize("error", [DataError("a refusal of its own"), KeyError("x")])
def test_an_error_in_an_augmentation_is_told_of_the_image_that_it_was_given(
    error: Exception, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Dataset.read

    def one_alone(self: Dataset, index: int) -> Sample:
        if not self.pairs[index].name.endswith("3"):
            raise DataError("damaged")
        return read(self, index)

    monkeypatch.setattr(Dataset, "read", one_alone)
    told = "^a refusal of its own$" if isinstance(error, DataError) else r"JPEGImages/.*3\.jpg could not be prepared \('x'\)"
    with pytest.raises(DataError, match=told):
        list(train_batches(dataset, failing(error), batch_size=5, seed=0, steps=1, skip_corrupt=True))


@pytest.mark.parametrize("error", [MemoryError(), SystemExit("Cannot allocate memory"), PanicError("out of memory")])
def test_what_goes_wrong_in_reading_for_an_evaluation_names_the_image(
    error: BaseException, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(self: Dataset, index: int) -> Sample:
        raise error

    monkeypatch.setattr(Dataset, "read", read)
    with pytest.raises(DataError, match=r"JPEGImages/.*jpg could not be prepared .*data\.val_long_side"):
        list(evaluation_batches(dataset, batch_size=2))


def test_images_of_two_sizes_make_no_batch(dataset: Dataset) -> None:
    def augment(sample: Sample, generator: np.random.Generator) -> Any:
        side = 4 + int(sample.name[-1])
        return np.zeros((side, side, 3), np.float32), np.zeros((side, side), np.uint8)

    with pytest.raises(DataError, match=r"and 1 others make no batch .*must be of one size"):
        list(train_batches(dataset, augment, batch_size=2, seed=0, steps=1, workers=1))


class Places(torch.utils.data.Dataset[int]):
    def __getitem__(self, place: int) -> int:
        if place == 7:
            time.sleep(1000)
        return place


class Unsent:
    """A batch that cannot leave the process that made it: what there is no room for in /dev/shm."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __reduce__(self) -> NoReturn:
        raise self.error


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "--shm-size"),
        (
            RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)"),
            r"No space left on device.*--shm-size",
        ),
        (OSError(errno.EFBIG, "File too large"), "ulimit -f"),
        (OSError(errno.EMFILE, "Too many open files"), "ulimit -n"),
        (RuntimeError("unable to mmap 9 bytes: Cannot allocate memory (12)"), "free some memory"),
        (ValueError("something else"), "a process that reads images ended"),
    ],
)
def test_a_batch_that_cannot_be_handed_over_ends_the_reading(error: Exception, message: str) -> None:
    batches = read_ahead(Places(), range(3), lambda items: Unsent(error), batch_size=1, workers=2, pin=False)
    with pytest.raises(DataError, match=message) as caught, closing(batches):
        next(batches)
    assert "\n" not in str(caught.value)
    assert multiprocessing.active_children() == []


def test_readers_that_are_busy_end_when_nobody_wants_their_batches_any_more() -> None:
    batches = read_ahead(Places(), [1, 7, 7, 7], lambda items: items, batch_size=1, workers=2, pin=False)
    with closing(batches):
        assert next(batches) == [1]
        assert len(multiprocessing.active_children()) == 2
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("workers", [0, 1])
def test_a_signal_ends_the_wait_for_a_batch_that_never_comes(workers: int) -> None:
    batches = read_ahead(Places(), [1, 7], lambda items: items, batch_size=1, workers=workers, pin=False)
    before = signal.getsignal(signal.SIGTERM)
    with stop_requested() as stop, closing(batches):
        waited = stop.wait_for(batches)
        assert next(waited) == [1]
        assert stop.number == 0
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
        assert list(waited) == [None]
        assert stop.number == signal.SIGTERM
    assert multiprocessing.active_children() == []
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_signal_between_two_waits_lets_the_next_batch_come() -> None:
    def items() -> Iterator[int]:
        yield from (1, 2)

    with stop_requested() as stop:
        waited = stop.wait_for(items())
        assert next(waited) == 1
        os.kill(os.getpid(), signal.SIGINT)
        assert (stop.number, next(waited)) == (signal.SIGINT, 2)


def test_reading_ahead_leaves_nothing_open() -> None:
    opened = []
    for _ in range(4):  # the first opens what multiprocessing keeps
        with closing(read_ahead(Places(), range(3), lambda items: items, batch_size=1, workers=2, pin=False)) as batches:
            assert list(batches) == [[0], [1], [2]]
        del batches
        gc.collect()  # queues refer to themselves
        opened.append(len(os.listdir("/proc/self/fd")))
    assert max(opened[1:]) <= opened[0] + 2
