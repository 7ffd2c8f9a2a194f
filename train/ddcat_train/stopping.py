"""SIGINT and SIGTERM, which stop a run after the step at hand."""

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
    """Raised by a signal in the middle of a wait; nothing on the way may take it for an error of its own."""


class Stop:
    """
    Collects the signals, the second of which is taken at its word.

    Where an agent started this process, the agent's end is a request as well: nobody would end the ranks if one of them died.
    """

    def __init__(self) -> None:
        self._received: list[int] = []
        self._waiting = False
        self._agent = os.getppid() if under_agent() else None
        self.before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}

    @property
    def number(self) -> int:
        """The signal that asks for a stop; 0 for none."""
        if self._received:
            return self._received[0]
        return signal.SIGTERM if self._agent not in (None, os.getppid()) else 0

    def wait_for(self, items: Iterator[T]) -> Iterator[T | None]:
        """Give the items; where a signal comes while one is waited for, give None in its place and end."""
        while True:
            try:
                try:
                    self._waiting = not self._received  # asked to stop before it waits, it does so after this item
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
        """Give the signals back to whom they were before."""
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
