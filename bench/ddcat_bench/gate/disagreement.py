"""Disagreement of an engine with its PyTorch model: near boundaries and elsewhere, and by the model's margin."""

from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from ddcat.classes import IGNORE_INDEX
from ddcat_bench.gate.results import BAND, MARGINS

__all__ = ["BAND", "MARGINS", "Disagreement", "boundary_band", "count_disagreement"]

_SCALARS = 5


class Disagreement(NamedTuple):
    """Numbers of pixels, of each of I images."""

    pixels: npt.NDArray[np.int64]  # (I,) int64: all pixels, including ignored ones
    differing: npt.NDArray[np.int64]  # (I,): pixels that engine and model label differently
    apart: npt.NDArray[np.int64]  # (I,): pixels that engine and twin label differently
    band: npt.NDArray[np.int64]  # (I,): pixels within `BAND` of a true boundary; and of them, those that differ
    band_differing: npt.NDArray[np.int64]
    # (I, M): pixels by the model's margin, the largest logit minus the second largest, in the classes of `MARGINS`; and of
    # them, those that differ
    margins: npt.NDArray[np.int64]
    margins_differing: npt.NDArray[np.int64]

    def to_array(self) -> npt.NDArray[np.int64]:
        """Return all counts as (I, F)."""
        return np.concatenate([np.stack(self[:_SCALARS], 1), self.margins, self.margins_differing], 1)

    @classmethod
    def from_array(cls, numbers: npt.NDArray[np.int64]) -> Self:
        """Undo `to_array`."""
        scalars, margins = numbers[:, :_SCALARS].T, numbers[:, _SCALARS : _SCALARS + 2 * len(MARGINS)]
        return cls(*scalars, *np.split(margins, 2, axis=1))

    @property
    def agreement(self) -> float:
        """Share of the pixels that engine and model label alike."""
        return 1 - float(self.differing.sum() / self.pixels.sum())

    @property
    def twin_agreement(self) -> float:
        """Share of the pixels that engine and twin label alike."""
        return 1 - float(self.apart.sum() / self.pixels.sum())

    @property
    def band_agreement(self) -> float | None:
        """The agreement near true boundaries; None where there are none."""
        total = self.band.sum()
        return 1 - float(self.band_differing.sum() / total) if total else None

    @property
    def interior_agreement(self) -> float | None:
        """The agreement elsewhere; None where every pixel is near a boundary."""
        total = (self.pixels - self.band).sum()
        return 1 - float((self.differing - self.band_differing).sum() / total) if total else None


def count_disagreement(truth: Tensor, logits: Tensor, engine: Tensor, twin: Tensor) -> Disagreement:
    """
    Count where an engine's labels are others than its model's.

    `truth` (N, H, W) int64 has 255 where it is ignored, `logits` (N, K, H, W) are the PyTorch model's, and `engine` and `twin`
    (N, H, W) are labels.
    """
    two = logits.topk(2, dim=1)
    flipped, apart = engine != two.indices[:, 0], engine != twin
    near = boundary_band(truth)
    margin = torch.bucketize(two.values[:, 0] - two.values[:, 1], torch.tensor(MARGINS), right=True) - 1  # (N, H, W)

    def each(chosen: Tensor) -> npt.NDArray[np.int64]:
        return chosen.flatten(1).sum(1).numpy()

    def by_margin(chosen: Tensor) -> npt.NDArray[np.int64]:
        rows = [torch.bincount(m[c], minlength=len(MARGINS)) for m, c in zip(margin, chosen, strict=True)]
        return torch.stack(rows).numpy()

    everywhere = torch.ones_like(flipped)
    return Disagreement(
        pixels=each(everywhere),
        differing=each(flipped),
        apart=each(apart),
        band=each(near),
        band_differing=each(near & flipped),
        margins=by_margin(everywhere),
        margins_differing=by_margin(flipped),
    )


def boundary_band(truth: Tensor) -> Tensor:
    """
    Find the pixels near a true boundary, (N, H, W) bool: their square of `BAND` pixels to each side holds two classes.

    Ignored pixels, 255, are of no class, and make no boundary.
    """
    counted = truth != IGNORE_INDEX
    values = truth.float().unsqueeze(1)  # (N, 1, H, W)
    known = counted.unsqueeze(1)

    def highest(planes: Tensor) -> Tensor:
        return F.max_pool2d(planes, 2 * BAND + 1, stride=1, padding=BAND)[:, 0]

    low, high = -highest(torch.where(known, -values, -torch.inf)), highest(torch.where(known, values, -torch.inf))
    return (low < high) & counted
