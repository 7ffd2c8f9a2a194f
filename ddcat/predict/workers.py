"""Work on groups of images in several threads at once: while one waits for the disk, others compute."""

import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TypeVar

__all__ = ["for_each"]

Unit = TypeVar("Unit")


def for_each(
    groups: Iterable[Sequence[Unit]],
    work: Callable[[Sequence[Unit]], None],
    *,
    threads: int,
    done: Callable[[int], None] = lambda count: None,
) -> None:
    """
    Call a function with each group, in several threads.

    A thread takes its next group when it has finished the one before. So no more groups are in memory than there are threads.

    Parameters
    ----------
    groups : iterable of sequences of units
        Its next group is made in the thread that takes it, one at a time: frames of a video are decoded there.
    work : callable
        Of a group; several threads call it.
    threads : int
    done : callable
        Called with the number of units of a group that was finished, by any of the threads.

    Raises
    ------
    BaseException
        What one of the functions raised first. The groups that other threads have begun are finished before.
    """
    waiting, taking, stopped = iter(groups), threading.Lock(), threading.Event()

    def take_turns() -> None:
        try:
            while not stopped.is_set():
                with taking:
                    group = next(waiting, None)
                if group is None:
                    return
                work(group)
                done(len(group))
        except BaseException:
            stopped.set()
            raise

    with ThreadPoolExecutor(threads, "predict") as pool:
        working = [pool.submit(take_turns) for _ in range(threads)]
        try:
            for future in as_completed(working):
                future.result()
        finally:
            stopped.set()
