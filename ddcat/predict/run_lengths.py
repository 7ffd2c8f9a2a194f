"""COCO's compressed run lengths of a label map, all classes in one pass."""

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["run_lengths"]

_BITS, _MORE, _FIRST = 5, 0x20, 48  # of a character: five bits, whether another follows, and "0"


def run_lengths(labels: npt.NDArray[np.uint8]) -> dict[int, dict[str, Any]]:
    """
    Encode a label map.

    Parameters
    ----------
    labels : (H, W) uint8

    Returns
    -------
    dict of int to dict
        For each label that occurs, ascending: ``size``, [height, width], and ``counts``, as pycocotools decodes them.
    """
    height, width = labels.shape
    flat = labels.ravel(order="F")
    starts = np.flatnonzero(np.concatenate([[True], flat[1:] != flat[:-1]]))  # of the runs, down the columns
    ends = np.append(starts[1:], flat.size)
    values = flat[starts]
    answer = {}
    for label in np.unique(values).tolist():
        chosen = values == label
        counts = _compressed(_alternating(starts[chosen], ends[chosen], flat.size))
        answer[label] = {"size": [height, width], "counts": counts}
    return answer


def _alternating(starts: npt.NDArray[np.intp], ends: npt.NDArray[np.intp], total: int) -> npt.NDArray[np.int64]:
    """Return lengths of runs of 0 and 1 in turns, from 0 on; the last is left out where it is empty."""
    borders = np.stack([starts, ends], 1).ravel()
    counts = np.diff(borders, prepend=0, append=total)
    return (counts if counts[-1] else counts[:-1]).astype(np.int64)


def _compressed(counts: npt.NDArray[np.int64]) -> str:
    """Write counts, from the fourth on as the difference from the one before the last, in groups of five bits."""
    values = counts.copy()
    values[3:] -= counts[1:-2]
    characters = []
    more = np.ones(values.shape, np.bool_)
    while more.any():
        bits = values & (_MORE - 1)
        values = values >> _BITS
        last = np.where(bits & 0x10, values == -1, values == 0)  # whose sign is that of what is left
        characters.append(np.where(more, bits + np.where(last, 0, _MORE) + _FIRST, 0))
        more = more & ~last
    table = np.stack(characters, 1).ravel().astype(np.uint8)
    return table[table > 0].tobytes().decode("ascii")
