"""What a person should know about a split before training on it: classes without a pixel, images to be shown turned."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ddcat.classes import CAMVID, CITYSCAPES, IGNORE_INDEX
from ddcat_train.data.base import Dataset, Pair
from ddcat_train.data.colours import palette_clash
from ddcat_train.data.fault import Fault
from ddcat_train.data.pictures import read_head, read_mask
from ddcat_train.errors import DataError

__all__ = ["Survey", "check_labelled", "survey", "warnings_of"]

_MOST_NAMES = 8
_VALUES = np.arange(256, dtype=np.uint8)
_NUMBERED = (CITYSCAPES, CAMVID)  # by others, so that nobody is to number them otherwise
_MUCH = 0.5  # of all pixels are ignored: it may be meant so, and should be known


@dataclass(frozen=True)
class Survey:
    """
    What all masks of a split hold, and how its images are stored.

    Attributes
    ----------
    pixels : (256,) int64
        Of each label.
    labelled : bool
        Whether a pair without a fault has a pixel of a class.
    unknown : frozenset of int
        Values in the masks that are no class and not ignored.
    colours : bool
        Whether a mask is in colours.
    faulty : int
        Pairs one of whose files cannot be used.
    turned : tuple of Path
        Images that EXIF says are to be shown turned or mirrored.
    clashes : tuple of str
        Masks whose palette shows a class in the colour of another one: file and what clashes.
    """

    pixels: npt.NDArray[np.int64]
    labelled: bool
    unknown: frozenset[int]
    colours: bool
    faulty: int
    turned: tuple[Path, ...]
    clashes: tuple[str, ...]


def survey(dataset: Dataset, *, advance: Callable[[int], object] = lambda pairs: None) -> Survey:
    """
    Read every mask, and the head of every image, of a split.

    Parameters
    ----------
    dataset : Dataset
    advance : callable, optional
        Is given the number of pairs that were read.
    """
    pixels = np.zeros(256, np.int64)
    unknown: set[int] = set()
    faulty, labelled, colours = 0, False, False
    turned: list[Path] = []
    clashes: list[str] = []
    # decoding gives way to other threads
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
        for pair, found in zip(dataset.pairs, threads.map(lambda pair: _look(dataset, pair), dataset.pairs), strict=True):
            advance(1)
            if isinstance(found, DataError):
                faulty += 1
                continue
            pixels += found.pixels
            faulty += bool(found.faults)
            colours = colours or found.colours
            labelled = labelled or (not found.faults and bool(found.pixels[: len(dataset.classes)].any()))
            unknown |= {fault.value for fault in found.faults if fault.value is not None}
            turned += [pair.image] * (found.orientation != 1)
            clashes += [f"{pair.labels}: {found.clash}"] * (found.clash is not None)
    return Survey(pixels, labelled, frozenset(unknown), colours, faulty, tuple(turned), tuple(clashes))


@dataclass(frozen=True)
class _Look:
    pixels: npt.NDArray[np.int64]
    faults: list[Fault]
    colours: bool
    orientation: int
    clash: str | None


def _look(dataset: Dataset, pair: Pair) -> _Look | DataError:
    try:
        orientation = read_head(pair.image).orientation
        mask = read_mask(pair.labels)
        labels, faults = dataset.labels_of(mask, pair.labels)
    except DataError as error:
        return error
    clash = None if dataset.made_up_palette else palette_clash(mask, dataset.decode(_VALUES), dataset.classes)
    return _Look(np.bincount(labels.ravel(), minlength=256), faults, mask.pixels.ndim == 3, orientation, clash)


def check_labelled(dataset: Dataset, found: Survey) -> None:
    """
    Refuse a split that nothing can be learnt from, and no score computed on.

    Raises
    ------
    DataError
    """
    sound = len(dataset) - found.faulty
    if sound and not found.labelled:
        unread = f" that can be read (of {len(dataset)})" if found.faulty else ""
        raise DataError(
            f"the {dataset.split} split at {dataset.root} has no labelled pixel: every pixel of its {sound} masks{unread} is "
            "ignored; label classes in some of them"
        )


def warnings_of(dataset: Dataset, found: Survey) -> list[str]:
    """Say in one line each what does not stop a training, and is most likely a mistake."""
    split, names = dataset.split, dataset.classes.names
    counts = found.pixels[: len(names)]
    absent = [name for name, count in zip(names, counts, strict=True) if not count]
    ignored = found.pixels[IGNORE_INDEX] / max(1, int(found.pixels.sum()))
    share = f"{ignored:.0%} of its pixels are ignored" if ignored >= 0.005 else "less than 1% of its pixels are ignored"
    lines = []
    if twice := len(dataset) - len({pair.image for pair in dataset.pairs}):
        lines.append(f"{split} lists {twice} of its {len(dataset)} images again: each counts as often as it is listed")
    if absent and found.pixels.any():
        rest = len(absent) - _MOST_NAMES
        more = f" and {rest} other{'s' * (rest > 1)}" if rest > 0 else ""
        told = f"; {share}" if found.pixels[IGNORE_INDEX] else ""
        lines.append(f"no pixel of {', '.join(absent[:_MOST_NAMES])}{more} in {split}{told}{_hint(dataset, found)}")
    elif ignored > _MUCH:
        lines.append(f"{split}: {share}")
    if found.turned:
        lines.append(
            f"EXIF orientation, not applied: {_count(found.turned, 'image')} of {split}, for example {found.turned[0]}; masks "
            "must be drawn on the pixels as they are stored"
        )
    if found.clashes:
        lines.append(
            f"palette in another order than the classes: {_count(found.clashes, 'mask')} of {split}, for example "
            f"{found.clashes[0]}; the indices count, not the colours"
        )
    return lines


def _hint(dataset: Dataset, found: Survey) -> str:
    if found.colours:
        return ""  # what the labels are does not come from numbers
    labels, counts = dataset.decode(_VALUES), found.pixels[: len(dataset.classes)]
    if dataset.classes in _NUMBERED or labels[0] != 0 or np.count_nonzero(labels == IGNORE_INDEX) != 1:
        return ""  # the values are numbered otherwise, on purpose
    if counts[0] and not counts[1:].any() and found.pixels[IGNORE_INDEX] and not found.unknown:
        return ": masks of 0 and 255 must be 0 and 1, or give 255 a name, 'names: {0: background, 255: object}' in classes.yaml"
    if not counts[0] and counts.any():
        return ": labels that begin at 1 must begin at 0, or be numbered, 'names: {1: road, 2: car}' in classes.yaml"
    return ""


def _count(things: Sequence[object], noun: str) -> str:
    return f"{len(things)} {noun}{'s' if len(things) > 1 else ''}"
