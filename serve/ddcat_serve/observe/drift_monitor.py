"""Sum up the answers of a serving model in a background thread, and measure their drift from the golden images."""

import copy
import threading
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from ddcat.engines import Outputs
from ddcat.engines.answer_statistics import (
    CONFIDENCE,
    DENSITY,
    Counts,
    Shares,
    Statistic,
    Statistics,
    psi,
    statistics_of,
    summed_shares,
)

__all__ = ["MIN_IMAGES", "DriftMonitor", "Totals"]

MIN_IMAGES = 20  # before which drift is not reported
_WINDOW = 100  # images: an answer so long ago has a third of the newest one's weight
_QUEUE_SIZE = 4  # batches waiting for the monitor; further ones are skipped


@dataclass
class Totals:
    """Sums over all monitored answers."""

    images: int
    skipped: int  # answers that were not evaluated, because they came too fast
    classes: Counts  # (K,) pixels of each class
    density: Counts  # (8,) images by their boundary density: see `DENSITY`
    density_sum: float
    confidence: Counts  # (10,) pixels by the probability of their label
    confidence_sum: float  # over all pixels
    drift: Mapping[
        Statistic, float
    ]  # PSI of the newest and the golden answers; none before `MIN_IMAGES`, or without golden ones


class DriftMonitor:
    """
    Evaluates a model's answers in a background thread, and skips some if it cannot keep up.

    Drift is that from the statistics of the clean golden images' answers, `golden`.
    """

    def __init__(self, classes: int, golden: Iterable[Statistics] = ()) -> None:
        self._classes = classes
        self._expected = summed_shares(golden)
        self._window: dict[Statistic, Shares] = {}
        self._totals = Totals(0, 0, _zeros(classes), _zeros(len(DENSITY)), 0.0, _zeros(len(CONFIDENCE)), 0.0, {})
        self._lock = threading.Lock()
        self._slots = threading.BoundedSemaphore(_QUEUE_SIZE)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="monitor")

    def observe(self, outputs: Outputs) -> "Future[None] | None":
        """Evaluate a batch of answers soon; return None if it is skipped."""
        if not self._slots.acquire(blocking=False):
            with self._lock:
                self._totals.skipped += len(outputs.labels)
            return None
        try:
            return self._thread.submit(self._evaluate, outputs)
        except RuntimeError:  # closed
            self._slots.release()
            return None

    def add(self, answer: Statistics) -> None:
        """Add the statistics of one answer, in order of arrival."""
        with self._lock:
            totals = self._totals
            totals.images += 1
            totals.classes += answer.classes
            totals.density[np.searchsorted(DENSITY, answer.density)] += 1
            totals.density_sum += answer.density
            if answer.confidence is not None:
                totals.confidence += answer.confidence
                totals.confidence_sum += answer.mean_confidence * int(answer.confidence.sum())
            for name, counts in answer.distributions().items():
                if counts.sum():  # an image of unknown labels alone has no areas
                    share = counts / counts.sum()
                    before = self._window.get(name)
                    self._window[name] = share if before is None else before * (1 - 1 / _WINDOW) + share

    def totals(self) -> Totals:
        """Return the sums so far."""
        with self._lock:
            seen = copy.deepcopy(self._totals)
            if seen.images >= MIN_IMAGES:
                known = self._window.keys() & self._expected.keys()
                seen.drift = {name: psi(self._expected[name], self._window[name]) for name in known}
            return seen

    def close(self) -> None:
        """Stop evaluating."""
        self._thread.shutdown(cancel_futures=True)

    def _evaluate(self, outputs: Outputs) -> None:
        try:
            for answer in statistics_of(outputs, self._classes):
                self.add(answer)
        finally:
            self._slots.release()


def _zeros(size: int) -> Counts:
    return np.zeros(size, np.int64)
