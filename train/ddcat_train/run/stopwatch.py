"""The time that steps take, and the part of it that they wait for their images."""

import time
from collections.abc import Iterator
from typing import TypeVar

import torch

__all__ = ["Stopwatch"]

T = TypeVar("T")


class Stopwatch:
    """
    Measures a loop over batches from one reading to the next.

    On a GPU the time counts in which the device has no work until a batch is there: the host is ahead of it and may wait
    without harm. There the times are those of CUDA events: synchronise with the device before `read`.

    Parameters
    ----------
    device : torch.device
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._began: float | None = None
        self._waits: list[float | tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def over(self, items: Iterator[T]) -> Iterator[T]:
        """Yield the items, and measure the wait for each."""
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
        Return the seconds since the first request for a batch after the last reading, and the seconds of waiting among them.

        The time up to the next request, of an evaluation or a checkpoint, is not measured.
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
