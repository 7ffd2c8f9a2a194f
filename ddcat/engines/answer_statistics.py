"""
Statistics of a model's answers: class areas, boundaries, confidence, and their distance from those of the golden images.

For monitoring, not a defence: an attacker who knows them can keep them nearly unchanged. No request is refused for them.
"""

from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from ddcat.bundle import Bundle
from ddcat.engines import Engine, Outputs
from ddcat.engines.golden import Example

__all__ = [
    "CONFIDENCE",
    "DENSITY",
    "Counts",
    "Shares",
    "Statistic",
    "Statistics",
    "class_pixels",
    "describe",
    "golden_statistics",
    "psi",
    "statistics_of",
    "summed_shares",
]

CONFIDENCE = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)  # upper bin edges of a pixel's probability
DENSITY = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)  # upper bin edges of an image's boundary density
_TILE = 32  # side of a tile in pixels: with boundaries counted per tile, few golden images give many samples
_TILE_EDGES = (0.0, 1e-9, 0.02, 0.05, 0.1, 0.2, 0.4, 1.0)  # bin edges of tile densities; the first bin: no boundary
_FEW = 32  # classes that are counted one by one, which is faster than numpy's table: that makes each label 8 bytes
_FLOOR = 1e-4  # smallest share of a bin: an empty bin would be infinitely far

U8 = npt.NDArray[np.uint8]
Counts = npt.NDArray[np.int64]
Shares = npt.NDArray[np.float64]
Statistic = Literal["classes", "boundaries", "confidence"]


class Statistics(NamedTuple):
    """
    Statistics of the answer to one image.

    Attributes
    ----------
    classes : (K,) int64
        Pixels of each class.
    boundaries : (7,) int64
        Tiles by the share of their pixels at a boundary.
    density : float
        That share in the whole image, in [0, 1].
    confidence : (10,) int64, or None
        Pixels by the probability of their label, in tenths; None if the engine does not return it.
    mean_confidence : float
        In [0, 1]; 0 without confidence.
    """

    classes: Counts
    boundaries: Counts
    density: float
    confidence: Counts | None = None
    mean_confidence: float = 0.0

    def distributions(self) -> dict[Statistic, Counts]:
        """Return the distributions whose drift is measured."""
        counts: dict[Statistic, Counts] = {"classes": self.classes, "boundaries": self.boundaries}
        return counts if self.confidence is None else counts | {"confidence": self.confidence}


def describe(labels: U8, classes: int, confidence: npt.NDArray[np.float32] | None = None) -> Statistics:
    """
    Compute the statistics of the answer to one image.

    Parameters
    ----------
    labels : (H, W) uint8
    classes : int
        Number of classes.
    confidence : (h, w) float32, optional
        Probability of each pixel's label, in [0, 1]; at any resolution.
    """
    areas = class_pixels(labels, classes)
    edges = np.zeros(labels.shape, np.bool_)  # pixels whose right or lower neighbour has another class
    edges[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    edges[:-1] |= labels[:-1] != labels[1:]
    tiles = np.histogram(_tile_means(edges), _TILE_EDGES)[0].astype(np.int64)
    density = np.count_nonzero(edges) / edges.size
    if confidence is None:
        return Statistics(areas, tiles, density)
    certainty = np.clip(np.nan_to_num(confidence), 0, 1)
    bins = len(CONFIDENCE)
    tenths = np.bincount(np.minimum((certainty * bins).astype(np.uint8), bins - 1).ravel(), minlength=bins)
    return Statistics(areas, tiles, density, tenths.astype(np.int64), float(certainty.mean()))


def class_pixels(labels: U8, classes: int) -> Counts:
    """Return the pixels of each class in labels of any shape, (K,) int64; other labels are not counted."""
    if classes <= _FEW:
        return np.array([np.count_nonzero(labels == label) for label in range(classes)], np.int64)
    return np.bincount(labels.ravel(), minlength=classes)[:classes].astype(np.int64)


def statistics_of(outputs: Outputs, classes: int) -> Iterator[Statistics]:
    """Yield the statistics of each answer of a batch; without a confidence output it comes from the low-resolution logits."""
    for place, labels in enumerate(outputs.labels):
        if outputs.confidence is not None:
            confidence = outputs.confidence[place]
        elif outputs.logits is not None:
            confidence = _top_probability(outputs.logits[place])
        else:
            confidence = None
        yield describe(labels, classes, confidence)


def golden_statistics(bundle: Bundle, engine: Engine, examples: Iterable[Example]) -> Iterator[Statistics]:
    """Yield the statistics of the clean golden images: of the bundle's labels, or the engine's outputs if it returns more."""
    for name, image, labels in examples:
        if name.startswith("clean."):
            again = np.repeat(image[None], bundle.manifest.shapes.batch.minimum, 0)
            outputs = Outputs(labels[None]) if len(engine.outputs) == 1 else engine.infer(again)
            yield next(statistics_of(outputs, len(bundle.manifest.classes)))


def summed_shares(answers: Iterable[Statistics]) -> dict[Statistic, Shares]:
    """Add up the distributions of answers, each image with the same weight."""
    summed: dict[Statistic, Shares] = {}
    for answer in answers:
        for name, counts in answer.distributions().items():
            if counts.sum():  # an image of unknown labels alone has no areas
                summed[name] = summed.get(name, 0) + counts / counts.sum()
    return summed


def psi(expected: npt.ArrayLike, actual: npt.ArrayLike) -> float:
    """
    Return the population stability index, a distance of two distributions; 0: equal.

    It is the sum of (q - p) ln(q / p) over bins. By rule of thumb 0.1 is a small and 0.25 a large change.

    Parameters
    ----------
    expected, actual : (B,)
        Counts or shares, normalised by their sum, which must not be 0.
    """
    p, q = (_floored(np.asarray(values, np.float64)) for values in (expected, actual))
    return float(((q - p) * np.log(q / p)).sum())


def _tile_means(edges: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    height, width = (max(1, size // _TILE) * min(_TILE, size) for size in edges.shape)  # remainders are dropped
    rows, columns = max(1, height // _TILE), max(1, width // _TILE)
    down, across = height // rows, width // columns
    ones = edges.view(np.uint8)[:height, :width].reshape(rows, down, columns, across)
    means: npt.NDArray[np.float64] = ones.sum(1, dtype=np.uint16).sum(-1) / (down * across)
    return means


def _top_probability(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return the largest softmax probability over K: (K, h, w) to (h, w)."""
    top: npt.NDArray[np.float32] = 1 / np.exp(logits - logits.max(0)).sum(0)
    return top


def _floored(values: Shares) -> Shares:
    shares = np.maximum(values / values.sum(), _FLOOR)
    floored: Shares = shares / shares.sum()
    return floored
