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

__all__ = ["is_of_worker", "machine_fails", "read_ahead", "remedy", "report_dead_workers"]

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
    """Return advice on an error in reading an image, if there is any."""
    return _REMEDIES.get(_number(cause), "")


def machine_fails(cause: BaseException | None) -> bool:
    """Return True where the machine lacks something, so that no file is at fault."""
    while cause is not None:
        if _number(cause) in _REMEDIES:
            return True
        cause = cause.__cause__
    return False


def _number(cause: BaseException) -> int:
    """Return the error number of an exception, also from a text of torch; 0 where it has none."""
    if isinstance(cause, OSError) and cause.errno:
        return cause.errno
    match = re.search(r"\((\d+)\)$", str(cause))  # unable to write to file </torch_1_2_3>: No space left on device (28)
    if match and int(match[1]) in _REMEDIES:
        return int(match[1])
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
    Yield the batches of a sampler, read by `workers` processes, or by this one for 0.

    Whatever ends this, its processes end within seconds, for which it must be closed.

    Parameters
    ----------
    places : torch.utils.data.Dataset
        Gives an item for each index of the sampler.
    collate : callable
        Makes a batch of `batch_size` items.
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
def report_dead_workers() -> Iterator[None]:
    """Turn the death of a reading process into a `DataError`; torch raises it anywhere in the loop."""
    try:
        yield
    except RuntimeError as cause:
        if not is_of_worker(cause):
            raise
        raise _ended(cause) from cause


def is_of_worker(error: BaseException) -> bool:
    """Return True for torch's error that a reading process has died."""
    return str(error).startswith(_OF_READERS)


def _ended(cause: BaseException) -> DataError:
    reason, number = " ".join(str(cause).split()).partition(" Details are lost")[0].rstrip("."), _number(cause)
    link: BaseException | None = cause
    while link is not None:
        if match := re.search(r"exit code (\d+)", str(link)):
            number = int(match[1])
        link = link.__cause__ or link.__context__
    if number in _REMEDIES:
        return DataError(f"a batch of images could not be handed over ({os.strerror(number)}): {_REMEDIES[number]}")
    if not is_of_worker(cause):
        reason = f"{type(cause).__name__} while a batch was fetched"
    return DataError(
        f"a process that reads images ended ({reason}): somebody killed it, or memory or /dev/shm ran out; free some and "
        "continue with --resume, or continue with fewer of them, --resume --set train.workers=N"
    )


def _begin(worker: int) -> None:
    """Ignore the signals that stop a run: they may reach all processes, and its loop needs batches until it has stopped."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    # The hook by which concurrent.futures, too, learns that a queue's thread failed; of this process alone.
    Queue._on_queue_feeder_error = staticmethod(_give_up)  # type: ignore[attr-defined]


def _give_up(error: BaseException, batch: object) -> None:
    os._exit(_number(error) or 1)


def _end(batches: Any, readers: list[BaseProcess]) -> None:
    """End the readers at once; they ignore the signal by which torch and multiprocessing would end them."""
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
    """Keep torch from raising an error when children end; it does so in the main thread alone."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGCHLD"):
        yield
        return
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, before)
