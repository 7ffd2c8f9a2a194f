"""
Images beyond a size, cut into tiles that overlap, and their logits blended into one map of labels.

The weights of two neighbours change over the middle half of their overlap, linearly; the outer quarters, which a network sees
without what is beside them, have no weight. The weights of a pixel sum to one. So the answer is that of the whole image
wherever a label depends on no pixel further away than a quarter of the overlap. Elsewhere tiles change answers.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from ddcat.schema import StrictModel

__all__ = ["LARGEST", "SMALLEST", "Band", "Tiles", "blend_bytes", "blended_bands", "enlarged", "tile_starts", "tile_weights"]

SMALLEST, LARGEST = 64, 2**14  # pixels of a tile's side
F32 = npt.NDArray[np.float32]
Place = tuple[int, int]  # (top, left) of a tile


class Tiles(StrictModel):
    """How large images are cut."""

    side: int = Field(ge=SMALLEST, le=LARGEST, description="Height and width of a tile; an image that is larger is cut.")
    overlap: int = Field(ge=0, description="Pixels that neighbours share, at least; half of the side at most.")

    @model_validator(mode="after")
    def _possible(self) -> "Tiles":
        if self.overlap > self.side // 2:
            raise ValueError(f"overlap {self.overlap} is more than half of the side {self.side}")
        return self

    def cut(self, height: int, width: int) -> bool:
        """Return whether an image of some size is cut."""
        return max(height, width) > self.side


def tile_starts(size: int, tiles: Tiles) -> list[int]:
    """Return where tiles begin along an axis; the last ends with the axis, so it may share more with the one before."""
    if size <= tiles.side:
        return [0]
    return [*range(0, size - tiles.side, tiles.side - tiles.overlap), size - tiles.side]


def tile_weights(size: int, tiles: Tiles) -> list[F32]:
    """
    Return the weights of each tile's pixels along an axis.

    Returns
    -------
    list of (min(side, size),) float32
        In [0, 1]; at each pixel of the axis they sum to one.
    """
    axis = _Axis(size, tiles)
    return [axis.weights(place) for place in range(len(axis.starts))]


def blend_bytes(height: int, width: int, tiles: Tiles, classes: int) -> int:
    """Return the bytes of logits that `blended_bands` keeps beside those of a batch of tiles: they grow with the width."""
    axis = _Axis(height, tiles)
    ends = (axis.bounds(place) for place in {0, max(0, len(axis.starts) - 2)})  # the last two may share more than others
    return 2 * 4 * classes * width * max(last - final for _, final, last in ends)


class Band(NamedTuple):
    """
    Rows of an answer.

    Attributes
    ----------
    labels : (rows, width) uint8
    confidence : (rows, width) float32, or None
        The probability of each label, if asked for.
    """

    labels: npt.NDArray[np.uint8]
    confidence: F32 | None = None


def blended_bands(
    height: int,
    width: int,
    tiles: Tiles,
    logits_of: Callable[[Sequence[Place]], F32],
    *,
    batch: int = 1,
    temperature: float | None = None,
) -> Iterator[Band]:
    """
    Label an image of any size, band after band, from the logits of its tiles.

    In memory are a batch of tiles, a band of the answer, and the logits of what two rows of tiles share: it grows with the
    width of the image, and not with its height.

    Parameters
    ----------
    height, width : int
        Of the image, in pixels.
    tiles : Tiles
    logits_of : callable
        Of some tiles of one row, by their upper left corners: (N, K, side, side) float32, each side at most the image's.
    batch : int
        Tiles that it is asked for at once.
    temperature : float, optional
        The blended logits are divided by it before the softmax of the confidence. None: there is no confidence.

    Yields
    ------
    Band
        From top to bottom.
    """
    rows, columns = (_Axis(size, tiles) for size in (height, width))
    sums: F32 | None = None  # of a tile: the memory of the last one, because new memory costs as much time as the sums
    carried: F32 | None = None  # (K, rows from `rows.final` on, width): weighted sums that the next tiles complete
    for i, top in enumerate(rows.starts):
        first, final, last = rows.bounds(i)
        labels = np.empty((final - first, width), np.uint8)
        confidence = None if temperature is None else np.empty((final - first, width), np.float32)
        below: F32 | None = None
        beside: F32 | None = None
        for at in range(0, len(columns.starts), batch):
            some = range(at, min(at + batch, len(columns.starts)))
            for j, logits in zip(some, logits_of([(top, columns.starts[j]) for j in some]), strict=True):
                left, (begin, end, reach) = columns.starts[j], columns.bounds(j)
                sums = np.multiply(logits, rows.weights(i)[:, None], out=sums)  # (K, side, side)
                sums *= columns.weights(j)
                if beside is not None:
                    sums[:, :, begin - left : begin - left + beside.shape[2]] += beside
                beside = sums[:, :, end - left : reach - left].copy()
                done = sums[:, first - top :, begin - left : end - left]
                if carried is not None:
                    done[:, : carried.shape[1]] += carried[:, :, begin:end]
                whole = done[:, : final - first]
                labels[:, begin:end] = whole.argmax(0)
                if confidence is not None and temperature is not None:
                    confidence[:, begin:end] = 1 / np.exp((whole - whole.max(0)) / np.float32(temperature)).sum(0)
                if below is None:
                    below = np.empty((len(logits), last - final, width), np.float32)
                below[:, :, begin:end] = done[:, final - first : last - first]
        carried = below
        yield Band(labels, confidence)


class _Axis:
    """The tiles along an axis, each computed when it is asked for: a long and narrow image has many."""

    def __init__(self, size: int, tiles: Tiles) -> None:
        self.starts, self._size, self._side = tile_starts(size, tiles), size, min(tiles.side, size)

    def weights(self, place: int) -> F32:
        """Return the weights of a tile's pixels along the axis, (side,)."""
        centres = self.starts[place] + np.arange(self._side, dtype=np.float64) + 0.5
        rise = _ramp(centres, *self._blend(place)) if place else np.ones(self._side)
        fall = _ramp(centres, *self._blend(place + 1)) if place + 1 < len(self.starts) else np.zeros(self._side)
        return (rise - fall).astype(np.float32)

    def bounds(self, place: int) -> tuple[int, int, int]:
        """Return from where to where pixels are complete after a tile and not before, and where its weights end."""
        first = int(self._blend(place)[0]) if place else 0
        if place + 1 == len(self.starts):
            return first, self._size, self._size
        begin, end = self._blend(place + 1)
        return first, int(begin), int(np.ceil(end))

    def _blend(self, place: int) -> tuple[float, float]:
        """Return where the weights of a tile and the one before change: over the middle half of what they share."""
        start = self.starts[place]
        shared = self.starts[place - 1] + self._side - start
        return start + shared / 4, start + 3 * shared / 4


def _ramp(centres: npt.NDArray[np.float64], begin: float, end: float) -> npt.NDArray[np.float64]:
    if end <= begin:  # nothing is shared
        return (centres > begin).astype(np.float64)
    return np.clip((centres - begin) / (end - begin), 0, 1)


def enlarged(logits: F32, size: tuple[int, int], *, corners: bool) -> F32:
    """
    Resize logits linearly.

    Parameters
    ----------
    logits : (N, K, h, w) float32
    size : (height, width)
    corners : bool
        The corners stay where they are (`align_corners` of PyTorch), or the edges do.

    Returns
    -------
    (N, K, height, width) float32
        The same array where it has that size.
    """
    if logits.shape[2:] == size:
        return logits
    down, across = (_linear(small, large, corners) for small, large in zip(logits.shape[2:], size, strict=True))
    resized: F32 = down @ (logits @ across.T)
    return resized


def _linear(small: int, large: int, corners: bool) -> F32:
    """Return the matrix, (large, small), that interpolates along an axis."""
    if corners:
        at = np.arange(large) * ((small - 1) / max(large - 1, 1))
    else:
        at = np.clip((np.arange(large) + 0.5) * (small / large) - 0.5, 0, small - 1)
    lower = np.minimum(at.astype(np.int64), max(small - 2, 0))
    share = at - lower
    matrix = np.zeros((large, small), np.float32)
    matrix[np.arange(large), lower] = 1 - share
    if small > 1:
        matrix[np.arange(large), lower + 1] = share
    return matrix
