"""
The processes that read ahead: how they begin, what is said where one cannot go on, and how they end.

A batch comes from a reader by way of shared memory and of a thread of the reader's. What fails there fails without a word in
torch: the reader lives on, and its batch never comes. Here such a reader ends, and its exit status says why.
"""

import errno
import os
import re
import signal
import threading
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing import active_children
from multiprocessing.process import BaseProcess
from multiprocessing.queues import Queue
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from ddcat_train.errors import DataError
from ddcat_train.memory import lacks_memory

__all__ = ["machine_fails", "of_readers", "read_ahead", "readers_watched", "remedy"]

T = TypeVar("T")
_GRACE = 1.0  # seconds in which a reader may end by itself
_OF_READERS = "DataLoader worker"  # what torch begins with where it tells of one that ended
_REMEDIES = {
    errno.ENOSPC: "/dev/shm, through which the reading processes hand over images, is full: give it more room (docker run "
    "--shm-size=8g), or use fewer processes with --set train.workers=N (0 needs no room)",
    errno.EFBIG: "the limit on the size of files holds for /dev/shm, too: raise it (ulimit -f), or use --set train.workers=0",
    errno.EMFILE: "raise the limit of open files (ulimit -n), or use fewer processes with --set train.workers=N",
    errno.ENFILE: "raise the machine's limit of open files, or use fewer processes with --set train.workers=N",
    errno.ENOMEM: "free some memory, make the images smaller (data.long_side, data.val_long_side), or use fewer processes with "
    "--set train.workers=N",
}


def remedy(cause: BaseException) -> str:
    """Say what helps against what went wrong in reading an image, if it is known."""
    return _REMEDIES.get(_number(cause), "")


def machine_fails(cause: BaseException | None) -> bool:
    """Whether the machine is short of something, so that no file is at fault."""
    while cause is not None:
        if _number(cause) in _REMEDIES:
            return True
        cause = cause.__cause__
    return False


def _number(cause: BaseException) -> int:
    """Give the error number of an exception, that in a text of torch's included; 0 where it has none."""
    if isinstance(cause, OSError) and cause.errno:
        return cause.errno
    told = re.search(r"\((\d+)\)$", str(cause))  # unable to write to file </torch_1_2_3>: No space left on device (28)
    if told and int(told[1]) in _REMEDIES:
        return int(told[1])
    if "Too many open files" in str(cause):
        return errno.EMFILE
    return errno.ENOMEM if lacks_memory(cause) else 0


def read_ahead(
    places: Dataset[Any],
    sampler: Iterable[int],
    collate: Callable[[list[Any]], T],
    *,
    batch_size: int,
    workers: int,
    pin: bool,
) -> Generator[T, None, None]:
    """
    Give the batches of a sampler, read by `workers` processes, or by this one where there are none.

    Whatever ends this, its processes end within seconds, for which it must be closed.

    Parameters
    ----------
    places : torch.utils.data.Dataset
        Gives an item for each index of the sampler.
    sampler : iterable of int
    collate : callable
        Makes a batch of `batch_size` items.
    batch_size, workers : int
    pin : bool
        Give batches in page-locked memory.

    Raises
    ------
    DataError
        Where a process cannot begin, ends, or cannot hand its batch over.
    """
    others = set(active_children())
    batches: Any = None
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "This DataLoader will create")  # more processes than cores, as the user asks for
            loader = DataLoader(
                places,
                sampler=sampler,
                batch_size=batch_size,
                num_workers=workers,
                collate_fn=collate,
                worker_init_fn=_begin,
                pin_memory=pin,
                generator=torch.Generator(),  # without one, the loader would draw from the state that dropout draws from
            )
            batches = iter(loader)
        while (batch := next(batches, None)) is not None:
            yield batch
    except (OSError, EOFError, RuntimeError, MemoryError) as cause:  # a batch comes by way of files and sockets
        raise _ended(cause) from cause
    finally:
        _end(batches, [child for child in active_children() if child not in others])


@contextmanager
def readers_watched() -> Iterator[None]:
    """
    Tell of the end of a process that reads ahead; torch does so wherever the loop is at.

    Raises
    ------
    DataError
    """
    try:
        yield
    except RuntimeError as cause:
        if not of_readers(cause):
            raise
        raise _ended(cause) from cause


def of_readers(error: BaseException) -> bool:
    """Whether torch tells by this that a process that reads ahead has ended."""
    return str(error).startswith(_OF_READERS)


def _ended(cause: BaseException) -> DataError:
    reason, number = " ".join(str(cause).split()).partition(" Details are lost")[0].rstrip("."), _number(cause)
    link: BaseException | None = cause
    while link is not None:
        if told := re.search(r"exit code (\d+)", str(link)):
            number = int(told[1])
        link = link.__cause__ or link.__context__
    if number in _REMEDIES:
        return DataError(f"a batch of images could not be handed over ({os.strerror(number)}): {_REMEDIES[number]}")
    if not of_readers(cause):
        reason = f"{type(cause).__name__} while a batch was fetched"
    return DataError(
        f"a process that reads images ended ({reason}): somebody killed it, or memory or /dev/shm ran out; free some and "
        "continue with --resume, or continue with fewer of them, --resume --set train.workers=N"
    )


def _begin(worker: int) -> None:
    """Leave what stops a run to its loop, which wants batches until it has stopped; the signal may reach all processes."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    # The hook by which concurrent.futures, too, learns that a queue's thread failed; of this process alone.
    Queue._on_queue_feeder_error = staticmethod(_give_up)  # type: ignore[attr-defined]


def _give_up(error: BaseException, batch: object) -> None:
    os._exit(_number(error) or 1)


def _end(batches: Any, readers: list[BaseProcess]) -> None:
    """End the readers, whatever they are at; they ignore the signal by which torch and multiprocessing would end them."""
    if not readers:
        return
    late = threading.Timer(_GRACE, partial(_kill, readers))
    late.daemon = True
    with _unwatched():
        late.start()
        with suppress(Exception):  # queues of processes that have ended
            batches._shutdown_workers()  # waits for each of them, with the queues drained
        late.cancel()
        _kill(readers)
        for reader in readers:
            reader.join()


def _kill(readers: list[BaseProcess]) -> None:
    for reader in readers:
        reader.kill()


@contextmanager
def _unwatched() -> Iterator[None]:
    """Let children end without torch's raising an error of it, which it does in the main thread alone."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGCHLD"):
        yield
        return
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, before)
