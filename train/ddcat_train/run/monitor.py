"""
The monitor of a run's steps: it stops a run that is not finite, and reports unreadable images and a loader that is too slow.

Nothing here makes the host wait within a step. A step's values are read back from the device some steps later, all at once, and
always before weights are saved or evaluated.
"""

import math
import os
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from ddcat.atomic_files import write_json
from ddcat_train.config import Config
from ddcat_train.data.loader import Batch, Skipped
from ddcat_train.errors import TrainError
from ddcat_train.run.run_log import RunLog
from ddcat_train.run.stopping import Stop
from ddcat_train.run.trainer import Trainer

__all__ = ["NONFINITE", "RunMonitor", "Stopwatch"]

NONFINITE = "nonfinite.json"
_FLUSH_EVERY = 20  # steps: a flush waits for the device
_MOST_WAITING = 0.25  # share of the time that may go into waiting for images
_WINDOW = 10.0  # seconds of steps over which that share is taken

_T = TypeVar("_T")


class _Step(NamedTuple):
    number: int
    names: tuple[str, ...]
    skipped: tuple[Skipped, ...]
    values: Mapping[str, Tensor | float]


class _Report(NamedTuple):
    """A rank's message to the others at a flush."""

    fault: tuple[int, list[str]] | None  # the first step with a value that is not finite, and the names of such values
    skipped: list[tuple[int, Skipped]]  # with the step
    waited: float


class Stopwatch:
    """
    Measures a loop over batches from one reading to the next.

    On a GPU the time counts in which the device has no work until a batch is there: the host is ahead of it and may wait
    without harm. There the times are those of CUDA events: synchronise with the device before `read`.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._began: float | None = None
        self._waits: list[float | tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def over(self, items: Iterator[_T]) -> Iterator[_T]:
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


class RunMonitor:
    """
    The monitor of one rank; all ranks call its methods in the same order.

    Parameters
    ----------
    log : RunLog or None
        None on all ranks but the first.
    """

    def __init__(self, config: Config, trainer: Trainer, run: Path, log: RunLog | None) -> None:
        self._config = config
        self._trainer = trainer
        self._run = run
        self._log = log
        self._steps: list[_Step] = []
        self._stopwatch = Stopwatch(trainer.device)
        self._seconds = self._waited = 0.0  # in the present window
        self._started = self._warned = False
        self._named: set[str] = set()

    def batches(self, stop: Stop) -> Generator[Batch | TrainError | None, None, None]:
        """
        Yield the remaining batches; close the generator, for its readers are processes.

        If reading fails, yield the error and stop. If a signal comes while a batch is waited for, yield None and stop.
        """
        with closing(self._trainer.batches()) as batches:
            yield from self._stopwatch.over(stop.wait_for(_with_error(batches)))

    def record(self, batch: Batch, values: Mapping[str, Tensor | float]) -> None:
        """Keep the values of a step on a batch; every few steps they are flushed."""
        self._steps.append(_Step(self._trainer.step, batch.names, batch.skipped, values))
        if self._log:
            self._log.advance(self._trainer.step)
        if len(self._steps) >= _FLUSH_EVERY:
            self.flush()

    def flush(self) -> None:
        """
        Read back the values of the steps since the last flush, check them, and write them to the log.

        Call it before weights are saved or evaluated.

        Raises
        ------
        TrainError
            Where a loss, a gradient or a weight is not finite, on all ranks alike. Such a run cannot recover.
        """
        steps, self._steps = self._steps, []
        if not steps:
            return
        rows = _read_back([step.values for step in steps])
        fault = self._fault(steps, rows)
        seconds, waited = self._stopwatch.read()
        skipped = [(step.number, one) for step in steps for one in step.skipped]
        reports = self._trainer.ranks.gather(_Report(fault, skipped, waited))
        faults = [one.fault for one in reports if one.fault]
        last = min(faults)[0] - 1 if faults else steps[-1].number
        if self._log:
            skipped = [one for report in reports for one in report.skipped]
            counts = [sum(number == step.number for number, _ in skipped) for step in steps]
            lines = [
                (step.number, row | ({"skipped": count} if self._config.data.skip_corrupt else {}))
                for step, row, count in zip(steps, rows, counts, strict=True)
                if step.number <= last
            ]
            self._log.write(lines, seconds=seconds, waited=max(one.waited for one in reports))
            self._warn(skipped, seconds, max(one.waited for one in reports))
        if faults:
            self._stop(steps, rows, *min(faults))

    def _fault(self, steps: list[_Step], rows: list[dict[str, float]]) -> tuple[int, list[str]] | None:
        for step, row in zip(steps, rows, strict=True):
            if names := [name for name, value in row.items() if not math.isfinite(value)]:
                return step.number, names
        return None if math.isfinite(self._trainer.max_abs()) else (steps[-1].number, ["weights"])

    def _stop(self, steps: list[_Step], rows: list[dict[str, float]], number: int, names: list[str]) -> None:
        step, row = next((step, row) for step, row in zip(steps, rows, strict=True) if step.number == number)
        files = {pair.name: str(pair.image) for pair in self._trainer.data.pairs}
        images = [files[name] for share in self._trainer.ranks.gather(step.names) for name in share]
        values = {name: value if math.isfinite(value) else str(value) for name, value in row.items()}
        if self._log:
            report = {"step": number, "not_finite": names, "values": values, "images": images}
            write_json(self._run / NONFINITE, report)
        raise TrainError(
            f"{' and '.join(names)} not finite at step {number} (lr {row['lr']:.3g}): the images of that step are named in "
            f"{self._run / NONFINITE}, and no weights were saved since. Look at the images, or begin a new run with a lower "
            "optim.lr"
        )

    def _warn(self, skipped: list[tuple[int, Skipped]], seconds: float, waited: float) -> None:
        assert self._log is not None
        for number, one in skipped:
            if one.name not in self._named:
                self._named.add(one.name)
                self._log.say(f"step {number}: another image takes the place of {one.name}: {one.fault}")
        if not self._started:  # the first batches are always waited for
            self._started = True
            return
        self._seconds, self._waited = self._seconds + seconds, self._waited + waited
        if self._seconds < _WINDOW:
            return
        share, self._seconds, self._waited = self._waited / self._seconds, 0.0, 0.0
        if share > _MOST_WAITING and not self._warned:
            self._warned = True
            workers, cores = self._config.train.workers, os.cpu_count()
            self._log.say(
                f"the loader does not keep up: {share:.0%} of the time goes into waiting for images; use more workers "
                f"(--resume --set train.workers=N; {workers} for each device now, {cores} cores), or smaller images"
            )


def _with_error(batches: Iterator[Batch]) -> Iterator[Batch | TrainError]:
    try:
        yield from batches
    except TrainError as error:
        yield error


def _read_back(steps: list[Mapping[str, Tensor | float]]) -> list[dict[str, float]]:
    """Turn all values into numbers, in one copy from the device."""
    tensors = [value.double() for values in steps for value in values.values() if isinstance(value, Tensor)]
    numbers = iter(torch.stack(tensors).tolist())
    return [{name: next(numbers) if isinstance(value, Tensor) else value for name, value in values.items()} for values in steps]
