"""COCO's compressed run lengths of a label map, all classes in one pass."""

import itertools
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["EncodedClass", "encode_classes", "run_lengths"]

_BITS, _MORE, _FIRST = 5, 0x20, 48  # of a character: five bits, whether another follows, and "0"

Indices = npt.NDArray[np.intp]


class EncodedClass(NamedTuple):
    """
    The pixels of a class in a label map.

    Attributes
    ----------
    counts : str
        Compressed run lengths, as pycocotools decodes them.
    area : int
        Number of pixels.
    box : list of int
        Left, top, width and height of the smallest box around them.
    """

    counts: str
    area: int
    box: list[int]


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
    return {label: {"size": [*labels.shape], "counts": found.counts} for label, found in encode_classes(labels).items()}


def encode_classes(labels: npt.NDArray[np.uint8]) -> dict[int, EncodedClass]:
    """
    Encode and measure each class of a label map.

    Parameters
    ----------
    labels : (H, W) uint8

    Returns
    -------
    dict of int to EncodedClass
        By label, ascending; only of labels that occur.
    """
    height = len(labels)
    flat = labels.ravel(order="F")
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])  # of the runs, down the columns
    order = np.argsort(flat[starts], kind="stable")
    ends = np.append(starts[1:], flat.size)[order]
    starts = starts[order]
    present, first = np.unique(flat[starts], return_index=True)
    counts = _compressed(*_alternating(starts, ends, first, flat.size))
    areas = np.add.reduceat(ends - starts, first)
    left, right = starts // height, (ends - 1) // height
    within = left == right  # a run that goes on in the next column has the last row of one and the first row of the other
    lefts, rights = np.minimum.reduceat(left, first), np.maximum.reduceat(right, first)
    tops = np.minimum.reduceat(np.where(within, starts % height, 0), first)
    bottoms = np.maximum.reduceat(np.where(within, (ends - 1) % height, height - 1), first)
    boxes = np.stack([lefts, tops, rights - lefts + 1, bottoms - tops + 1], 1).tolist()
    found = map(EncodedClass, counts, areas.tolist(), boxes)
    return dict(zip(present.tolist(), found, strict=True))


def _alternating(starts: Indices, ends: Indices, first: Indices, total: int) -> tuple[Indices, Indices]:
    """
    Return the lengths of runs of 0 and 1 in turns, from 0 on, class after class, and where each class begins.

    Parameters
    ----------
    starts, ends : (R,)
        Of the runs of all classes, class after class.
    first : (K,)
        The first run of each class.
    total : int
        Pixels of the map.
    """
    classes = np.arange(len(first))
    runs = np.diff(first, append=len(starts))
    places = 2 * np.arange(len(starts)) + np.repeat(classes, runs)  # of what lies before each run
    begins = 2 * first + classes
    last = begins + 2 * runs  # of what lies after the last run of a class
    counts = np.empty(2 * len(starts) + len(first), np.intp)
    before = np.concatenate([[0], ends[:-1]])
    before[first] = 0
    counts[places] = starts - before
    counts[places + 1] = ends - starts
    counts[last] = total - ends[first + runs - 1]
    kept = np.ones(counts.shape, np.bool_)
    kept[last] = counts[last] > 0
    return counts[kept], begins - np.concatenate([[0], np.cumsum(~kept[last])[:-1]])


def _compressed(counts: Indices, begins: Indices) -> list[str]:
    """Write the counts of each class, from the fourth on as the difference from the one before the last, in groups of bits."""
    values = counts.copy()
    values[2:] -= counts[:-2]
    for place in range(3):  # of a class: these are written as they are
        chosen = begins + place
        chosen = chosen[chosen < np.append(begins[1:], len(counts))]
        values[chosen] = counts[chosen]
    characters = []
    more = np.ones(values.shape, np.bool_)
    while more.any():
        bits = values & (_MORE - 1)
        values = values >> _BITS
        last = np.where(bits & 0x10, values == -1, values == 0)  # whose sign is that of what is left
        characters.append(np.where(more, bits + np.where(last, 0, _MORE) + _FIRST, 0))
        more = more & ~last
    table = np.stack(characters, 1).astype(np.uint8)
    lengths = np.cumsum(np.count_nonzero(table, 1))
    text = table[table > 0].tobytes().decode("ascii")
    cuts = [0, *lengths[begins[1:] - 1].tolist(), len(text)]
    return [text[start:end] for start, end in itertools.pairwise(cuts)]
