"""How long steps take, and how much of that they wait for their images."""

import time
from collections.abc import Iterator
from typing import TypeVar

import torch

__all__ = ["Stopwatch"]

T = TypeVar("T")


class Stopwatch:
    """
    Measures a loop over batches from one reading to the next.

    On a GPU what counts is how long it has nothing to do until a batch is there: the host, which is ahead of it, may wait
    without harm. There the times are those of events, and are known when the device has been waited for, so before `read`.

    Parameters
    ----------
    device : torch.device
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._began: float | None = None
        self._waits: list[float | tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def over(self, items: Iterator[T]) -> Iterator[T]:
        """Give the items, and measure how long each is waited for."""
        while True:
            before = time.perf_counter()
            if self._began is None:
                self._began = before
            idle = self._mark()
            item = next(items, None)
            busy = self._mark()
            self._waits.append(time.perf_counter() - before if idle is None or busy is None else (idle, busy))
            if item is None:
                return
            yield item

    def read(self) -> tuple[float, float]:
        """
        Give the seconds since the first batch after the last reading was asked for, and those of them that were waited.

        What comes until the next batch is asked for, an evaluation or a checkpoint, is not measured.
        """
        began, self._began = self._began, None
        waits, self._waits = self._waits, []
        if began is None:
            return 0.0, 0.0
        waited = sum(wait if isinstance(wait, float) else wait[0].elapsed_time(wait[1]) / 1000 for wait in waits)
        return time.perf_counter() - began, waited

    def _mark(self) -> torch.cuda.Event | None:
        if self._device.type != "cuda":
            return None
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event
