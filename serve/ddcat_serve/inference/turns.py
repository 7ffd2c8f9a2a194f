"""Turns between engines that answer requests and one that is being loaded: it computes while the others do not."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["Turns"]

_GAP = 1.0  # seconds for which a load waits for a moment without a batch, before it has batches wait
_SPARE = 10  # times as long as its last call, at least: so it takes a tenth of the time from a busy engine at most
_PATIENCE = 1.0  # seconds for which either waits for the other's call to end


class Turns:
    """
    Takes turns, one call at a time, so that a load neither slows down batches for long nor measures them as its own.

    A call that lasts longer than the others wait is waited for once: an engine that hangs, answering or loading, does not stop
    the others.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._batches, self._waiting, self._loading, self._last_load = 0, 0, False, 0.0
        self._batches_ended = self._loads_ended = 0
        self._long_batch = self._long_load = -1  # how many had ended when the other gave up waiting for the next one

    @contextmanager
    def batch(self) -> Iterator[None]:
        """Compute a batch in the block; several engines may do so at once."""
        with self._changed:
            self._waiting += 1
            if self._long_load != self._loads_ended and not self._changed.wait_for(lambda: not self._loading, _PATIENCE):
                self._long_load = self._loads_ended
            self._waiting -= 1
            self._batches += 1
        try:
            yield
        finally:
            with self._changed:
                self._batches -= 1
                self._batches_ended += 1
                self._changed.notify_all()

    @contextmanager
    def load(self) -> Iterator[None]:
        """Make a call of an engine that is being loaded; only one is at a time."""
        with self._changed:
            if self._long_batch != self._batches_ended:
                # A batch that waited for the last call comes first: the next call would begin before its thread wakes.
                self._changed.wait_for(lambda: not self._batches + self._waiting, max(_GAP, _SPARE * self._last_load))
                self._loading = True
                if not self._changed.wait_for(lambda: not self._batches, _PATIENCE):
                    self._long_batch = self._batches_ended
            self._loading = True
        began = time.monotonic()
        try:
            yield
        finally:
            with self._changed:
                self._loading, self._last_load = False, time.monotonic() - began
                self._loads_ended += 1
                self._changed.notify_all()
