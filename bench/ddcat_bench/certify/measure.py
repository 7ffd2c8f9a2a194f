"""Count the labels of noisy images, and certify what holds."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ddcat.classes import IGNORE_INDEX
from ddcat.metrics import Counts, confusion_counts
from ddcat_bench.certify.smoothing import ABSTAIN, certified_labels
from ddcat_bench.errors import BenchError
from ddcat_bench.judged import JudgedJob
from ddcat_bench.work_units import open_units
from ddcat_train.data.loader import evaluation_plan
from ddcat_train.seeds import derive_seed

__all__ = ["Certified", "CertifyJob", "certify_image", "measure"]

U8 = npt.NDArray[np.uint8]


_KINDS = 3  # counts of a unit: base network on the clean image, smoothed, certified


@dataclass(frozen=True)
class CertifyJob(JudgedJob):
    """What is certified, on which images, and how surely: see `JudgedJob`."""

    sigma: float = 0.25  # standard deviation of the noise, in [0, 1] units
    choosing: int = 10  # noisy images that choose each pixel's class, and further ones that count it
    samples: int = 100
    tau: float = 0.75  # see `ddcat_bench.certify.smoothing`
    alpha: float = 0.001

    def __post_init__(self) -> None:
        if not 0 < self.sigma <= 2:
            raise BenchError(f"--sigma {self.sigma:g}: expected a deviation above 0 and up to 2, in [0, 1] units, such as 0.25")
        if self.samples < (least := self.fewest_samples()):
            raise BenchError(
                f"--samples {self.samples}: no pixel of {self._pixels()} could be certified at tau {self.tau:g} and alpha "
                f"{self.alpha:g}: use {least} or more"
            )

    def fewest_samples(self) -> int:
        """Return the least number of samples by which any pixel can be certified: all of them agree."""
        samples = 1
        while self.tau**samples > self.alpha / self._pixels():
            samples += 1
        return samples

    def _pixels(self) -> int:
        height, width = self.dataset.size(0)
        return height * width

    @property
    def labelled(self) -> int:
        """Number of images that are labelled in all."""
        return self.images * (1 + self.choosing + self.samples)

    def identity(self) -> dict[str, Any]:
        """Return everything that the counts depend on, as JSON."""
        own = {name: getattr(self, name) for name in ("sigma", "choosing", "samples", "tau", "alpha")}
        return super().identity() | own


class Certified(NamedTuple):
    """What was counted."""

    names: list[str]
    # (I, K, 3) int64: of the base network on clean images; of the smoothed one; of its certified labels, where a pixel without
    # a certificate is missed
    clean: Counts
    smoothed: Counts
    certified: Counts
    labelled: int  # labelled pixels, and those of them without a certificate
    abstained: int
    seconds: float


def certify_image(
    job: CertifyJob, image: U8, *, seed: int, advance: Callable[[int], None] = lambda images: None
) -> tuple[U8, U8]:
    """
    Certify one image, (H, W, 3) uint8; `advance` is called with the number of images that were just labelled.

    Returns two maps (H, W) uint8: labels of the smoothed network, and those of them that are certified; others are `ABSTAIN`.
    """
    generator, classes = np.random.default_rng(seed), len(job.dataset.classes)
    votes = np.zeros((*image.shape[:2], classes), np.int32)
    for labels in _noisy(job, image, job.choosing, generator, advance):
        votes += labels[..., None] == np.arange(classes)
    chosen = votes.argmax(-1).astype(np.uint8)  # (H, W)
    hits = np.zeros(chosen.shape, np.int32)
    for labels in _noisy(job, image, job.samples, generator, advance):
        hits += labels == chosen
    return chosen, certified_labels(chosen, hits, samples=job.samples, tau=job.tau, alpha=job.alpha)


def measure(job: CertifyJob, work: Path, advance: Callable[[int], None] = lambda images: None) -> Certified:
    """
    Certify what is not certified yet, and add up.

    Finished images are kept in the folder `work`, from which an interrupted measurement continues. `advance` is called with the
    number of images that were just labelled, or were found done. Raises BenchError, DataError.
    """
    units, data = open_units(work, job.identity()), job.dataset
    indices = [index for [index] in evaluation_plan(data, batch_size=1, limit=job.max_images)]
    classes = len(data.classes)
    for place, index in enumerate(indices):
        if units.has(place, 0):
            advance(1 + job.choosing + job.samples)
            continue
        began, sample = time.monotonic(), data.read(index)
        base = job.predict(sample.image[None])[0]
        advance(1)
        smoothed, certified = certify_image(job, sample.image, seed=derive_seed(job.seed, index), advance=advance)
        valid = sample.labels != IGNORE_INDEX
        missed = np.where(certified == ABSTAIN, classes, certified.astype(np.int64))  # a class that no pixel has
        counts = [
            confusion_counts(sample.labels, base, classes),
            confusion_counts(sample.labels, smoothed, classes),
            confusion_counts(sample.labels, missed, classes + 1)[:classes],
            np.zeros((classes, 3), np.int64),
        ]
        counts[-1][0] = valid.sum(), (valid & (certified == ABSTAIN)).sum(), 0
        units.put(place, 0, np.stack(counts), time.monotonic() - began)
    parts, seconds = zip(*(units.get(place, 0) for place in range(len(indices))), strict=True)
    whole = np.stack(parts)  # (I, 4, K, 3)
    labelled, abstained, _ = whole[:, _KINDS, 0].sum(0).tolist()
    return Certified(
        [data.pairs[index].name for index in indices], whole[:, 0], whole[:, 1], whole[:, 2], labelled, abstained, sum(seconds)
    )


def _noisy(job: CertifyJob, image: U8, count: int, generator: np.random.Generator, advance: Callable[[int], None]) -> Any:
    unit = image.astype(np.float32) / np.float32(255)
    for first in range(0, count, job.batch_size):
        size = min(job.batch_size, count - first)
        noise = generator.standard_normal((size, *image.shape), dtype=np.float32) * np.float32(job.sigma)
        received = np.round(np.clip(unit + noise, 0, 1) * np.float32(255)).astype(np.uint8)  # an engine takes whole levels
        yield from job.predict(received)
        advance(size)
