"""Sum up the answers of a serving model in a background thread, and measure their drift from the golden images."""

import threading
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from ddcat.engines import Outputs
from ddcat_serve.observe.answer_statistics import CONFIDENCE, DENSITY, Counts, Shares, Statistic, Statistics, psi, statistics_of

__all__ = ["LEAST", "Monitor", "Totals"]

LEAST = 20  # images, before which a drift would say nothing
_WINDOW = 100  # images: what came so long ago weighs a third of what comes now
_BEHIND = 4  # answers that wait for the monitor; further ones are not looked at


@dataclass
class Totals:
    """
    All that a monitor has seen.

    Attributes
    ----------
    images : int
    skipped : int
        Answers that came faster than they could be looked at.
    classes : (K,) int64
        Pixels of each class.
    density : (8,) int64
        Images by their boundary density: see `DENSITY`.
    density_sum : float
    confidence : (10,) int64
        Pixels by the probability of their label.
    confidence_sum : float
        Of all pixels.
    drift : mapping of Statistic to float
        PSI of the newest images from the golden ones; empty before `LEAST` images, and where there are no golden ones.
    """

    images: int
    skipped: int
    classes: Counts
    density: Counts
    density_sum: float
    confidence: Counts
    confidence_sum: float
    drift: Mapping[Statistic, float]


class Monitor:
    """
    Looks at a model's answers in a thread of its own; where it cannot keep up, it leaves some out.

    Parameters
    ----------
    classes : int
        How many there are.
    golden : iterable of Statistics
        Of the answers to the golden images, without the adversarial ones.
    """

    def __init__(self, classes: int, golden: Iterable[Statistics] = ()) -> None:
        self._classes = classes
        self._expected = _summed(golden)
        self._window: dict[Statistic, Shares] = {}
        self._totals = Totals(0, 0, _zeros(classes), _zeros(len(DENSITY)), 0.0, _zeros(len(CONFIDENCE)), 0.0, {})
        self._lock = threading.Lock()
        self._room = threading.BoundedSemaphore(_BEHIND)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="monitor")

    def see(self, outputs: Outputs) -> "Future[None] | None":
        """Look at a batch of answers soon; None where there is no time for it."""
        if not self._room.acquire(blocking=False):
            with self._lock:
                self._totals.skipped += len(outputs.labels)
            return None
        try:
            return self._thread.submit(self._look, outputs)
        except RuntimeError:  # closed
            self._room.release()
            return None

    def add(self, found: Statistics) -> None:
        """Sum up what one answer looks like, at once: the next in the order in which they come."""
        with self._lock:
            totals = self._totals
            totals.images += 1
            totals.classes += found.classes
            totals.density[np.searchsorted(DENSITY, found.density)] += 1
            totals.density_sum += found.density
            if found.confidence is not None:
                totals.confidence += found.confidence
                totals.confidence_sum += found.mean_confidence * int(found.confidence.sum())
            for name, counts in found.distributions().items():
                if counts.sum():  # an image of unknown labels alone has no areas
                    share = counts / counts.sum()
                    before = self._window.get(name)
                    self._window[name] = share if before is None else before * (1 - 1 / _WINDOW) + share

    def totals(self) -> Totals:
        """Give all that was seen until now."""
        with self._lock:
            seen = self._totals
            enough = seen.images >= LEAST
            drift = {name: psi(self._expected[name], found) for name, found in self._window.items() if name in self._expected}
            return Totals(
                seen.images, seen.skipped, seen.classes.copy(), seen.density.copy(), seen.density_sum,
                seen.confidence.copy(), seen.confidence_sum, drift if enough else {},
            )  # fmt: skip

    def close(self) -> None:
        """Look at no more."""
        self._thread.shutdown(cancel_futures=True)

    def _look(self, outputs: Outputs) -> None:
        try:
            for found in statistics_of(outputs, self._classes):
                self.add(found)
        finally:
            self._room.release()


def _summed(golden: Iterable[Statistics]) -> dict[Statistic, Shares]:
    summed: dict[Statistic, Shares] = {}
    for found in golden:
        for name, counts in found.distributions().items():
            if counts.sum():  # an image of unknown labels alone has no areas
                summed[name] = summed.get(name, 0) + counts / counts.sum()
    return summed


def _zeros(size: int) -> Counts:
    return np.zeros(size, np.int64)
