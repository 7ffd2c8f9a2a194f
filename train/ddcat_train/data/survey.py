"""Survey of a split before training: classes without a pixel, images stored turned."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ddcat.classes import CAMVID, CITYSCAPES, IGNORE_INDEX
from ddcat_train.data.colours import palette_clash
from ddcat_train.data.dataset import Dataset, Pair
from ddcat_train.data.fault import Fault
from ddcat_train.data.files import SCENES
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
    Pixels of all masks of a split, and orientations of its images.

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
    advance : callable, optional
        Receives the number of pairs that were read.
    """
    pixels = np.zeros(256, np.int64)
    unknown: set[int] = set()
    faulty, labelled, colours = 0, False, False
    turned: list[Path] = []
    clashes: list[str] = []
    # decoding gives way to other threads
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
        for pair, result in zip(dataset.pairs, threads.map(lambda pair: _look(dataset, pair), dataset.pairs), strict=True):
            advance(1)
            if isinstance(result, DataError):
                faulty += 1
                continue
            pixels += result.pixels
            faulty += bool(result.faults)
            colours = colours or result.colours
            labelled = labelled or (not result.faults and bool(result.pixels[: len(dataset.classes)].any()))
            unknown |= {fault.value for fault in result.faults if fault.value is not None}
            turned += [pair.image] * (result.orientation != 1)
            clashes += [f"{pair.labels}: {result.clash}"] * (result.clash is not None)
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
        orientation = 1 if pair.image.suffix.lower() in SCENES else read_head(pair.image).orientation
        mask = read_mask(pair.labels)
        labels, faults = dataset.labels_of(mask, pair.labels)
    except DataError as error:
        return error
    clash = None if dataset.made_up_palette else palette_clash(mask, dataset.decode(_VALUES), dataset.classes)
    return _Look(np.bincount(labels.ravel(), minlength=256), faults, mask.pixels.ndim == 3, orientation, clash)


def check_labelled(dataset: Dataset, result: Survey) -> None:
    """Refuse a split without labelled pixels by a `DataError`."""
    sound = len(dataset) - result.faulty
    if sound and not result.labelled:
        unread = f" that can be read (of {len(dataset)})" if result.faulty else ""
        raise DataError(
            f"the {dataset.split} split at {dataset.root} has no labelled pixel: every pixel of its {sound} masks{unread} is "
            "ignored; label classes in some of them"
        )


def warnings_of(dataset: Dataset, result: Survey) -> list[str]:
    """Return likely mistakes that do not stop a training, one line each."""
    split, names = dataset.split, dataset.classes.names
    counts = result.pixels[: len(names)]
    absent = [name for name, count in zip(names, counts, strict=True) if not count]
    ignored = result.pixels[IGNORE_INDEX] / max(1, int(result.pixels.sum()))
    share = f"{ignored:.0%} of its pixels are ignored" if ignored >= 0.005 else "less than 1% of its pixels are ignored"
    lines = []
    if twice := len(dataset) - len({pair.image for pair in dataset.pairs}):
        lines.append(f"{split} lists {twice} of its {len(dataset)} images again: each counts as often as it is listed")
    if absent and result.pixels.any():
        rest = len(absent) - _MOST_NAMES
        more = f" and {rest} other{'s' * (rest > 1)}" if rest > 0 else ""
        part = f"; {share}" if result.pixels[IGNORE_INDEX] else ""
        lines.append(f"no pixel of {', '.join(absent[:_MOST_NAMES])}{more} in {split}{part}{_hint(dataset, result)}")
    elif ignored > _MUCH:
        lines.append(f"{split}: {share}")
    if result.turned:
        lines.append(
            f"EXIF orientation, not applied: {_count(result.turned, 'image')} of {split}, for example {result.turned[0]}; "
            "masks must be drawn on the pixels as they are stored"
        )
    if result.clashes:
        lines.append(
            f"palette in another order than the classes: {_count(result.clashes, 'mask')} of {split}, for example "
            f"{result.clashes[0]}; the indices count, not the colours"
        )
    return lines


def _hint(dataset: Dataset, result: Survey) -> str:
    if result.colours:
        return ""  # what the labels are does not come from numbers
    labels, counts = dataset.decode(_VALUES), result.pixels[: len(dataset.classes)]
    if dataset.classes in _NUMBERED or labels[0] != 0 or np.count_nonzero(labels == IGNORE_INDEX) != 1:
        return ""  # the values are numbered otherwise, on purpose
    if counts[0] and not counts[1:].any() and result.pixels[IGNORE_INDEX] and not result.unknown:
        return ": masks of 0 and 255 must be 0 and 1, or give 255 a name, 'names: {0: background, 255: object}' in classes.yaml"
    if not counts[0] and counts.any():
        return ": labels that begin at 1 must begin at 0, or be numbered, 'names: {1: road, 2: car}' in classes.yaml"
    return ""


def _count(things: Sequence[object], noun: str) -> str:
    return f"{len(things)} {noun}{'s' if len(things) > 1 else ''}"
