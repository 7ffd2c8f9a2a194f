"""The time in which a server that was told to stop answers what it had accepted."""

import time
from collections.abc import Callable

__all__ = ["Drain"]


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
