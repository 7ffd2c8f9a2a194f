"""SIGINT and SIGTERM: they stop a run after the present step."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

from ddcat.agent import under_agent

__all__ = ["Stop", "stop_requested"]

T = TypeVar("T")


class _WaitEndedError(KeyboardInterrupt):
    """Raised by a signal in the middle of a wait; no handler on the way may catch it as an error of its own."""


class Stop:
    """
    Collects the signals; the second one ends the process at once.

    Where an agent started this process, the end of the agent asks for a stop, too: nobody would end the ranks if one died.
    """

    def __init__(self) -> None:
        self._received: list[int] = []
        self._waiting = False
        self._agent = os.getppid() if under_agent() else None
        self.before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}

    @property
    def number(self) -> int:
        """Number of the signal that asks for a stop; 0 for none."""
        if self._received:
            return self._received[0]
        return signal.SIGTERM if self._agent not in (None, os.getppid()) else 0

    def wait_for(self, items: Iterator[T]) -> Iterator[T | None]:
        """Yield the items; where a signal comes during the wait for one, yield None in its place and end."""
        while True:
            try:
                try:
                    self._waiting = not self._received  # a stop asked for before the wait comes after this item
                    item = next(items, None)
                finally:
                    self._waiting = False
            except _WaitEndedError:
                yield None
                return
            if item is None:
                return
            yield item

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._received.append(number)
        self.restore()
        if self._waiting:  # for a batch that may never come
            self._waiting = False
            raise _WaitEndedError

    def restore(self) -> None:
        """Restore the former signal handlers."""
        for number, handler in self.before.items():
            signal.signal(number, handler)


@contextmanager
def stop_requested() -> Iterator[Stop]:
    """Collect SIGINT and SIGTERM instead of dying of the first."""
    stop = Stop()
    try:
        yield stop
    finally:
        stop.restore()
