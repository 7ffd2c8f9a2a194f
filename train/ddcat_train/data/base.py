"""What a data set is, and how one pair of it is read: image, label indices, sizes, values."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np

from ddcat.classes import IGNORE, Classes
from ddcat.faults import printable
from ddcat.hashing import sha256_of_bytes
from ddcat_train.data.pictures import U8, read_head, read_image, read_indices
from ddcat_train.errors import DataError

__all__ = [
    "U8",
    "Dataset",
    "Decode",
    "Fault",
    "Pair",
    "Sample",
    "outside",
    "resize_long_side",
    "unchanged",
]

cv2.setNumThreads(0)  # its threads would fight with those of torch and do not survive the fork of a worker

Decode = Callable[[U8], U8]


@dataclass(frozen=True)
class Sample:
    """
    One image with its labels.

    Attributes
    ----------
    image : (H, W, 3) uint8
        RGB.
    labels : (H, W) uint8
        Values in 0..K-1, or 255 = ignored.
    name : str
    """

    image: U8
    labels: U8
    name: str


@dataclass(frozen=True)
class Pair:
    """The files of one image and of its labels; they need not exist."""

    name: str
    image: Path
    labels: Path


@dataclass(frozen=True)
class Fault:
    """
    Something that is wrong with a pair.

    Attributes
    ----------
    kind : str
        "missing" or "unreadable" for a file; "size" where the two differ in size; "value" for a label that is neither a class
        nor 255.
    file : Path
    message : str
        One line for the user, which names the file.
    value, pixels : int or None
        The label and the number of its pixels, for a fault of kind "value".
    """

    kind: Literal["missing", "unreadable", "size", "value"]
    file: Path
    message: str
    value: int | None = None
    pixels: int | None = None


def unchanged(indices: U8) -> U8:
    """Decode the labels of a data set whose files hold them as they are."""
    return indices


@dataclass(frozen=True)
class Dataset:
    """
    The pairs of one split of a data set.

    Attributes
    ----------
    name : str
        Of the reader, a key of `ddcat_train.data.DATASETS`.
    root : Path
    split : str
    classes : Classes
    pairs : tuple of Pair
    decode : callable
        Takes the values of a label file, (H, W) uint8, to labels, (H, W) uint8; what it does not know it leaves as it is.
    long_side : int or None
        Images and labels are resized until their longer side is this; None: they are not.
    clips : str or None
        A regular expression for images that are frames of video. Those whose names have the same first group, or the same whole
        match where it has none, belong to one clip. None: not said.
    """

    name: str
    root: Path
    split: str
    classes: Classes
    pairs: tuple[Pair, ...]
    decode: Decode = unchanged
    long_side: int | None = None
    clips: str | None = None

    def __len__(self) -> int:
        return len(self.pairs)

    def read(self, index: int) -> Sample:
        """
        Read one pair.

        Raises
        ------
        DataError
            Where a file is damaged or of a wrong form, the sizes differ, or a label is neither a class nor 255.
        """
        found = self.inspect(index)
        if isinstance(found, Sample):
            return found
        raise DataError(found[0].message)

    def inspect(self, index: int) -> Sample | list[Fault]:
        """Read one pair, or tell all that is wrong with it."""
        pair = self.pairs[index]
        faults: list[Fault] = []
        image = labels = None
        try:
            image = read_image(pair.image)
        except DataError as error:
            faults.append(Fault(_kind(pair.image), pair.image, str(error)))
        try:
            labels = self.decode(read_indices(pair.labels))
        except DataError as error:
            faults.append(Fault(_kind(pair.labels), pair.labels, str(error)))
        if image is not None and labels is not None and image.shape[:2] != labels.shape:
            turned = image.shape[1::-1] == labels.shape
            message = (
                f"{printable(pair.labels)} is {labels.shape[1]}x{labels.shape[0]}, but its image {printable(pair.image)} is "
                f"{image.shape[1]}x{image.shape[0]}: they must be of one size"
                f"{', as stored: an orientation that EXIF speaks of is not applied' if turned else ''}"
            )
            faults.append(Fault("size", pair.labels, message))
        for value, pixels in outside(labels, self.classes).items() if labels is not None else ():
            message = (
                f"{printable(pair.labels)}: label {value} ({pixels} pixels) is no class of {self.name}: "
                f"0..{len(self.classes) - 1} and {IGNORE} (ignored) would be right"
            )
            faults.append(Fault("value", pair.labels, message, value, pixels))
        if image is None or labels is None or faults:
            return faults
        if self.long_side is not None:
            image, labels = resize_long_side(image, labels, self.long_side)
        return Sample(image, labels, pair.name)

    def size(self, index: int) -> tuple[int, int]:
        """
        Say how large an image will be, (height, width), from the head of its file alone.

        Raises
        ------
        DataError
            Where the file is missing or no image.
        """
        height, width, _ = read_head(self.pairs[index].image)
        return (height, width) if self.long_side is None else _resized(height, width, self.long_side)

    def list_sha256(self) -> str:
        """SHA-256 of the names of the images, one a line: it tells two splits apart."""
        return sha256_of_bytes("\n".join(pair.name for pair in self.pairs).encode())


def outside(labels: U8, classes: Classes) -> dict[int, int]:
    """Values that are neither a class nor 255, each with its number of pixels."""
    counts = np.bincount(labels.ravel(), minlength=256)
    return {int(value): int(counts[value]) for value in np.flatnonzero(counts) if len(classes) <= value != IGNORE}


def resize_long_side(image: U8, labels: U8, long_side: int) -> tuple[U8, U8]:
    """Resize an image (shrinking by area, else bilinearly) and its labels (nearest) until the longer side is `long_side`."""
    height, width = labels.shape
    if max(height, width) == long_side:
        return image, labels
    size = _resized(height, width, long_side)[::-1]
    resized = cv2.resize(image, size, interpolation=cv2.INTER_AREA if long_side < max(height, width) else cv2.INTER_LINEAR)
    nearest = cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST_EXACT)  # the plain one is off by half a pixel
    return np.asarray(resized, dtype=np.uint8), np.asarray(nearest, dtype=np.uint8)


def _resized(height: int, width: int, long_side: int) -> tuple[int, int]:
    factor = long_side / max(height, width)
    return max(1, round(height * factor)), max(1, round(width * factor))


def _kind(path: Path) -> Literal["missing", "unreadable"]:
    return "unreadable" if os.path.lexists(path) else "missing"
