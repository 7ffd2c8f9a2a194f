"""Corrupt the images of a split, let a model or an engine label them, and count."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from ddcat.metrics import Counts, confusion_counts
from ddcat_bench.bootstrap import FEWEST_UNITS, interval, scheme_of
from ddcat_bench.corruption.results import CorruptionRow, Group
from ddcat_bench.judged import JudgedJob
from ddcat_bench.result_schema import Scores
from ddcat_bench.work_units import open_units
from ddcat_train.corruptions import COMMON, CORRUPTIONS, EXTRA, SEVERITIES, corrupt
from ddcat_train.data.loader import evaluation_plan
from ddcat_train.seeds import derive_seed

__all__ = ["CorruptionJob", "Measured", "group_of", "measure"]

U8 = npt.NDArray[np.uint8]


_AHEAD = 3  # corruptions of a batch that are begun before the first of them is finished


@dataclass(frozen=True)
class CorruptionJob(JudgedJob):
    """What is judged, on which images, under which corruptions: see `JudgedJob`."""

    names: tuple[str, ...] = tuple(CORRUPTIONS)  # keys of `ddcat_train.corruptions.CORRUPTIONS`
    at_once: int = 8  # images that a thread labels at once
    threads: int = 2  # threads, each of which corrupts, labels and counts

    @property
    def labelled(self) -> int:
        """Number of images that are labelled in all, clean ones included."""
        return self.images * (1 + len(self.names) * len(SEVERITIES))

    def seed_of(self, index: int, name: str, severity: int) -> int:
        """Return the seed of an image's corruption, by its place in the split."""
        return derive_seed(self.seed, index, tuple(CORRUPTIONS).index(name), severity)

    def identity(self) -> dict[str, Any]:
        """Return everything that the counts depend on, as JSON."""
        return super().identity() | {"corruptions": list(self.names)}


class Measured(NamedTuple):
    """Names of the images, scores on clean ones, a row for each corruption and severity, and seconds in all."""

    images: list[str]
    clean: Scores
    rows: tuple[CorruptionRow, ...]
    seconds: float


def group_of(name: str) -> Group:
    """Name the list that a corruption is of."""
    return "common" if name in COMMON else "extra" if name in EXTRA else "capture"


def measure(job: CorruptionJob, work: Path, advance: Callable[[int], None] = lambda images: None) -> Measured:
    """
    Do what is not done yet, and compute all figures.

    Finished parts are kept in the folder `work`, from which an interrupted measurement continues. `advance` is called with the
    number of images that were just labelled, or were found done. Raises BenchError, DataError.
    """
    units, data = open_units(work, job.identity()), job.dataset
    plan = list(evaluation_plan(data, batch_size=job.batch_size, limit=job.max_images))
    with _opencv_of_one_thread(), ThreadPoolExecutor(job.threads) as pool:
        for batch, indices in enumerate(plan):
            missing = [place for place in range(len(job.names) + 1) if not units.has(batch, place)]
            left = sum(len(SEVERITIES) if place else 1 for place in missing)
            advance(len(indices) * (1 + len(job.names) * len(SEVERITIES) - left))
            if not missing:
                continue
            samples = [data.read(index) for index in indices]
            images, truth = (np.stack([getattr(one, kind) for one in samples]) for kind in ("image", "labels"))
            began = monotonic()
            for place, of_severities in _ahead(pool, job, images, truth, indices, missing):
                counts = []
                for of_one in of_severities:
                    counts.append(of_one.result())
                    advance(len(indices))
                units.put(batch, place, np.stack(counts), monotonic() - began)
                began = monotonic()
    parts = [[units.get(batch, place) for batch in range(len(plan))] for place in range(len(job.names) + 1)]
    counts = [np.concatenate([part for part, _ in of_one], axis=1) for of_one in parts]  # (severities, I, K, 3) each
    names = [data.pairs[index].name for indices in plan for index in indices]
    return Measured(
        names,
        Scores.of(counts[0][0], data.classes.background),
        tuple(_rows(job, counts[1:], names)),
        sum(seconds for of_one in parts for _, seconds in of_one),
    )


def _ahead(
    pool: Executor, job: CorruptionJob, images: U8, truth: U8, indices: Sequence[int], places: Sequence[int]
) -> Iterator[tuple[int, list[Future[Counts]]]]:
    """Yield the counts of the clean images or of each corruption, by severity, while threads are at work on the next ones."""
    waiting: list[tuple[int, list[Future[Counts]]]] = []
    for place in places:
        severities = SEVERITIES if place else (0,)  # 0: as they are
        waiting.append((place, [pool.submit(_count, job, images, truth, indices, place, one) for one in severities]))
        if len(waiting) == _AHEAD:
            yield waiting.pop(0)
    yield from waiting


def _count(job: CorruptionJob, images: U8, truth: U8, indices: Sequence[int], place: int, severity: int) -> Counts:
    """Corrupt a batch, label it and count: (N, K, 3)."""
    counts: list[Counts] = []
    for first in range(0, len(images), job.at_once):
        shown = images[first : first + job.at_once]
        if severity:
            name = job.names[place - 1]
            seeds = [job.seed_of(index, name, severity) for index in indices[first : first + job.at_once]]
            shown = np.stack([corrupt(one, name, severity=severity, seed=s) for one, s in zip(shown, seeds, strict=True)])
        labels = job.predict(shown)
        pairs = zip(truth[first : first + job.at_once], labels, strict=True)
        counts += [confusion_counts(t, p, len(job.dataset.classes)) for t, p in pairs]
    return np.stack(counts)


@contextmanager
def _opencv_of_one_thread() -> Iterator[None]:
    """Keep OpenCV to the thread that calls it, while there is a thread for each core."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)


def _rows(job: CorruptionJob, counts: Sequence[Counts], names: list[str]) -> Iterator[CorruptionRow]:
    scheme = scheme_of(job.dataset.name, names, job.dataset.clips)
    for name, of_one in zip(job.names, counts, strict=True):
        for severity, of_severity in zip(SEVERITIES, of_one, strict=True):
            scores = Scores.of(of_severity)
            low, high = interval(of_severity, scheme) if scheme.units >= FEWEST_UNITS else (None, None)
            yield CorruptionRow(
                name=name,
                group=group_of(name),
                severity=severity,
                miou=scores.miou,
                low=low,
                high=high,
                pixel_accuracy=scores.pixel_accuracy,
                class_iou=scores.class_iou,
            )
