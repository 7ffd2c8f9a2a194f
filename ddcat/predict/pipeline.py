"""Reading, computing and writing at the same time: threads read ahead and write behind while the engine computes."""

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

__all__ = ["pipelined"]

_AHEAD = 2  # groups that wait for the engine, and for the disk, per thread

Unit = TypeVar("Unit")
Loaded = TypeVar("Loaded")
Answered = TypeVar("Answered")


class _End(Generic[Unit]):
    """The end of the units, or what went wrong while they were listed."""

    def __init__(self, fault: BaseException | None) -> None:
        self.fault = fault


def pipelined(
    groups: Iterable[Sequence[Unit]],
    load: Callable[[Unit], Loaded],
    compute: Callable[[Sequence[Loaded]], Iterable[Answered]],
    store: Callable[[Unit, Answered], None],
    *,
    threads: int,
    done: Callable[[int], None] = lambda count: None,
) -> None:
    """
    Load units in threads, compute group after group in this thread, and store each unit's answer in threads.

    The groups are listed in a thread, too: frames of a video are decoded there. Never more than a few groups are in memory.

    Parameters
    ----------
    groups : iterable of sequences of units
    load : callable
        Of a unit; several threads call it.
    compute : callable
        Of a loaded group, one answer for each unit; only this thread calls it.
    store : callable
        Of a unit and its answer; several threads call it.
    threads : int
        That load, and that store.
    done : callable
        Called with the number of units that were stored.

    Raises
    ------
    BaseException
        Whatever one of the functions raised first; units that were computed before are stored.
    """
    stopped = threading.Event()
    with ThreadPoolExecutor(threads, "read") as readers, ThreadPoolExecutor(threads, "write") as writers:
        waiting: queue.Queue[tuple[Sequence[Unit], list[Future[Loaded]]] | _End[Unit]] = queue.Queue(_AHEAD * threads)
        lister = threading.Thread(target=_list, args=(groups, load, readers, waiting, stopped), daemon=True)
        lister.start()
        storing: deque[Future[None]] = deque()
        try:
            for group, loading in _taken(waiting):
                answers = compute([future.result() for future in loading])
                for unit, answer in zip(group, answers, strict=True):
                    storing.append(writers.submit(store, unit, answer))
                while len(storing) > _AHEAD * threads:
                    _finish(storing, done)
            while storing:
                _finish(storing, done)
        finally:
            stopped.set()
            lister.join()


def _finish(storing: "deque[Future[None]]", done: Callable[[int], None]) -> None:
    storing.popleft().result()
    done(1)


def _taken(waiting: "queue.Queue[tuple[Sequence[Unit], list[Future[Loaded]]] | _End[Unit]]") -> Iterator[
    tuple[Sequence[Unit], list[Future[Loaded]]]
]:  # fmt: skip
    while not isinstance(group := waiting.get(), _End):
        yield group
    if group.fault is not None:
        raise group.fault


def _list(
    groups: Iterable[Sequence[Unit]],
    load: Callable[[Unit], Loaded],
    readers: ThreadPoolExecutor,
    waiting: "queue.Queue[tuple[Sequence[Unit], list[Future[Loaded]]] | _End[Unit]]",
    stopped: threading.Event,
) -> None:
    fault: BaseException | None = None
    try:
        for group in groups:
            if not _offer(waiting, (group, [readers.submit(load, unit) for unit in group]), stopped):
                return
    except BaseException as error:  # it is raised where the groups are taken
        fault = error
    _offer(waiting, _End(fault), stopped)


def _offer(waiting: "queue.Queue[Unit]", item: Unit, stopped: threading.Event) -> bool:
    while not stopped.is_set():
        try:
            waiting.put(item, timeout=0.1)
        except queue.Full:
            continue
        return True
    return False
