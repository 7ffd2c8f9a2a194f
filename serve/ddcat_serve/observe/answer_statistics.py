"""
What a model's answers look like: areas of the classes, boundaries, confidence, and how far all that is from its golden images.

Monitoring, and no defence: whoever knows these figures can attack so that they hardly change. Nothing is refused for them.
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
    "describe",
    "golden_statistics",
    "psi",
    "statistics_of",
]

CONFIDENCE = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)  # upper ends of the bins of a pixel's probability
DENSITY = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)  # upper ends of the bins of an image's boundary density
_TILE = 32  # pixels of a side: boundaries are counted in tiles, so that few golden images are many samples
_TILES = (0.0, 1e-9, 0.02, 0.05, 0.1, 0.2, 0.4, 1.0)  # ends of the bins of their densities; the first: no boundary at all
_FLOOR = 1e-4  # a smaller share of a bin counts as this: an empty one would be infinitely far

U8 = npt.NDArray[np.uint8]
Counts = npt.NDArray[np.int64]
Shares = npt.NDArray[np.float64]
Statistic = Literal["classes", "boundaries", "confidence"]


class Statistics(NamedTuple):
    """
    What an answer looks like.

    Attributes
    ----------
    classes : (K,) int64
        Pixels of each class.
    boundaries : (7,) int64
        Tiles by the share of their pixels that lie at a boundary.
    density : float
        That share in the whole image, in [0, 1].
    confidence : (10,) int64, or None
        Pixels by the probability of their label, in tenths; None where the engine does not give it.
    mean_confidence : float
        In [0, 1]; 0 where it is not given.
    """

    classes: Counts
    boundaries: Counts
    density: float
    confidence: Counts | None = None
    mean_confidence: float = 0.0

    def distributions(self) -> dict[Statistic, Counts]:
        """Give what drifts."""
        found: dict[Statistic, Counts] = {"classes": self.classes, "boundaries": self.boundaries}
        return found if self.confidence is None else found | {"confidence": self.confidence}


def describe(labels: U8, classes: int, confidence: npt.NDArray[np.float32] | None = None) -> Statistics:
    """
    Describe the answer to one image.

    Parameters
    ----------
    labels : (H, W) uint8
    classes : int
        How many there are.
    confidence : (h, w) float32, optional
        Probability of each pixel's label, in [0, 1]; at any resolution.
    """
    areas = np.bincount(labels.ravel(), minlength=classes)[:classes].astype(np.int64)
    edges = np.zeros(labels.shape, np.bool_)  # pixels whose right or lower neighbour is of another class
    edges[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    edges[:-1] |= labels[:-1] != labels[1:]
    tiles = np.histogram(_tile_means(edges), _TILES)[0].astype(np.int64)
    if confidence is None:
        return Statistics(areas, tiles, float(edges.mean()))
    sure = np.clip(np.nan_to_num(confidence), 0, 1)
    bins = len(CONFIDENCE)
    tenths = np.bincount(np.minimum((sure * bins).astype(np.uint8), bins - 1).ravel(), minlength=bins)
    return Statistics(areas, tiles, float(edges.mean()), tenths.astype(np.int64), float(sure.mean()))


def statistics_of(outputs: Outputs, classes: int) -> Iterator[Statistics]:
    """Describe each answer of a batch; the confidence comes from the logits where it is not given, at their low resolution."""
    for place, labels in enumerate(outputs.labels):
        if outputs.confidence is not None:
            confidence = outputs.confidence[place]
        elif outputs.logits is not None:
            confidence = _top_probability(outputs.logits[place])
        else:
            confidence = None
        yield describe(labels, classes, confidence)


def golden_statistics(bundle: Bundle, engine: Engine, examples: Iterable[Example]) -> Iterator[Statistics]:
    """Describe the answers to clean golden images: by the bundle's labels, or the engine's where it says more than labels."""
    for name, image, labels in examples:
        if name.startswith("clean."):
            again = np.repeat(image[None], bundle.manifest.shapes.batch.minimum, 0)
            outputs = Outputs(labels[None]) if len(engine.outputs) == 1 else engine.infer(again)
            yield next(statistics_of(outputs, len(bundle.manifest.classes)))


def psi(expected: npt.ArrayLike, found: npt.ArrayLike) -> float:
    """
    Population stability index: how far one distribution is from another; 0: equal.

    The sum of (q - p) ln(q / p) over bins. Rules of thumb call 0.1 a small and 0.25 a large change.

    Parameters
    ----------
    expected, found : (B,)
        Counts or shares; each is divided by its sum, which is not 0.
    """
    p, q = (_floored(np.asarray(values, np.float64)) for values in (expected, found))
    return float(((q - p) * np.log(q / p)).sum())


def _tile_means(edges: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    height, width = (max(1, size // _TILE) * min(_TILE, size) for size in edges.shape)  # what is left over is left out
    rows, columns = max(1, height // _TILE), max(1, width // _TILE)
    tiles = edges[:height, :width].reshape(rows, height // rows, columns, width // columns)
    means: npt.NDArray[np.float64] = tiles.mean((1, 3))
    return means


def _top_probability(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Softmax of (K, h, w), its largest value: (h, w)."""
    top: npt.NDArray[np.float32] = 1 / np.exp(logits - logits.max(0)).sum(0)
    return top


def _floored(values: Shares) -> Shares:
    shares = np.maximum(values / values.sum(), _FLOOR)
    floored: Shares = shares / shares.sum()
    return floored
