"""The end of a server: the time in which it answers what it had accepted, and leaving though an engine does not come back."""

import contextlib
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator

__all__ = ["Drain", "leave_at_once"]


@contextlib.contextmanager
def leave_at_once(at_work: Callable[[], bool]) -> Iterator[None]:
    """
    Let a block that ends the process end it without further ado where threads of a runtime are still at work.

    The interpreter would take down what they use, and the runtime would abort the process: a signal instead of a status.

    Parameters
    ----------
    at_work : callable
        Is asked after the block.
    """
    try:
        yield
    except SystemExit as leaving:
        if not at_work():
            raise
        status = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    else:
        if not at_work():
            return
        status = 0
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


class Drain:
    """
    One end for HTTP, gRPC and all engines: their drains must not add up to more than whoever stops the server waits for.

    Parameters
    ----------
    seconds : float
        From its beginning to its end.
    clock : callable, optional
        In seconds, never going back.
    """

    def __init__(self, seconds: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds, self._clock = seconds, clock
        self._end: float | None = None

    def begin(self) -> float:
        """Begin, if nobody has yet; give the seconds that are left."""
        now = self._clock()
        if self._end is None:
            self._end = now + self._seconds
        return max(0.0, self._end - now)

    def cut(self) -> None:
        """End now."""
        self._end = self._clock()
