"""A data set, and the reading of one pair: image, label indices, sizes, values."""

import dataclasses
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ddcat.classes import IGNORE_INDEX, Classes, Colour
from ddcat.hashing import sha256_of_bytes
from ddcat.preprocess import AS_STORED, FileRule, apply_rule, network_size, restore
from ddcat_train.data.classes_file import CLASSES_FILE, Legend, read_legend
from ddcat_train.data.colours import decode_colours
from ddcat_train.data.fault import Fault
from ddcat_train.data.pictures import U8, Mask, read_image, read_mask, read_size
from ddcat_train.errors import DataError

__all__ = ["U8", "Dataset", "Decode", "Fault", "Pair", "Sample", "identity"]

Decode = Callable[[U8], U8]

_ORIENTED = {  # where a mask has the size of its image on its side
    "stored": ", as stored: an orientation that EXIF speaks of is not applied; use data.orientation=exif to do so",
    "exif": ", after the orientation that EXIF speaks of; use data.orientation=stored to leave it out",
}


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
    full_labels : (H', W') uint8, or None
        The labels at the size of the image's file, by which a gate scores; None: they are not known.
    """

    image: U8
    labels: U8
    name: str
    full_labels: U8 | None = None


@dataclass(frozen=True)
class Pair:
    """The files of one image and of its labels; they need not exist."""

    name: str
    image: Path
    labels: Path


def identity(indices: U8) -> U8:
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
    decode : callable
        Takes the values of a label file, (H, W) uint8, to labels, (H, W) uint8; what it does not know becomes neither a class
        nor 255.
    colours : mapping of (red, green, blue) to int, or None
        Label of each colour of a mask in colours; None: masks in colours are refused.
    made_up_palette : bool
        The colours of `classes` are not the data set's own.
    rule : FileRule
        How images are read; labels are resized with them.
    clips : str or None
        A regular expression for images that are frames of video. Those whose names have the same first group, or the same whole
        match where it has none, belong to one clip. None: not said.
    folders : tuple of Path
        In which the split has its images and labels.
    lists : tuple of str
        Other splits, whose files lie in the same folders.
    notes : tuple of str
        What a person should know about how the files were found, one line each.
    """

    name: str
    root: Path
    split: str
    classes: Classes
    pairs: tuple[Pair, ...]
    decode: Decode = identity
    colours: Mapping[Colour, int] | None = None
    made_up_palette: bool = False
    rule: FileRule = AS_STORED
    clips: str | None = None
    folders: tuple[Path, ...] = ()
    lists: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def long_side(self) -> int | None:
        """The longer side that images are resized to; None: they are not, or to height and width."""
        return self.rule.long_side

    def with_long_side(self, long_side: int | None) -> "Dataset":
        """Return it with images of another longer side; None: of their own size."""
        return dataclasses.replace(self, rule=self.rule.with_long_side(long_side))

    def __len__(self) -> int:
        return len(self.pairs)

    def with_legend(self, legend: Legend) -> "Dataset":
        """Return it with the classes of a `classes.yaml`, and the values and colours that it gives them."""
        return dataclasses.replace(
            self,
            classes=legend.classes,
            decode=legend.table,
            colours=legend.colours,
            made_up_palette=legend.colours is None,
            clips=legend.clips,
        )

    def with_own_classes(self) -> "Dataset":
        """Return it with the legend of the `classes.yaml` in its root; as it is where there is none."""
        file = self.root / CLASSES_FILE
        return self.with_legend(read_legend(file)) if os.path.lexists(file) else self

    def read(self, index: int) -> Sample:
        """
        Read one pair.

        Raises
        ------
        DataError
            Where a file is damaged or of a wrong form, the sizes differ, or a label is neither a class nor ignored.
        """
        result = self.inspect(index)
        if isinstance(result, Sample):
            return result
        raise DataError(result[0].message)

    def inspect(self, index: int) -> Sample | list[Fault]:
        """Read one pair, or tell all that is wrong with it."""
        pair = self.pairs[index]
        faults: list[Fault] = []
        image = labels = None
        try:
            image = read_image(pair.image, self.rule)
        except DataError as error:
            faults.append(_unreadable(pair.image, error))
        try:
            mask = read_mask(pair.labels)
            labels, unknown = self.labels_of(mask, pair.labels)
        except DataError as error:
            faults.append(_unreadable(pair.labels, error))
            unknown = []
        if image is not None and labels is not None and image.shape[:2] != labels.shape:
            turned = image.shape[1::-1] == labels.shape
            message = (
                f"{pair.labels} is {labels.shape[1]}x{labels.shape[0]}, but its image {pair.image} is "
                f"{image.shape[1]}x{image.shape[0]}: they must be of one size"
                f"{_ORIENTED[self.rule.orientation] if turned else ''}"
            )
            faults.append(Fault("size", pair.labels, message))
        faults += unknown
        if image is None or labels is None or faults:
            return faults
        resized = apply_rule(image, self.rule)
        return Sample(resized, restore(labels, resized.shape[:2]), pair.name, labels)

    def labels_of(self, mask: Mask, file: Path) -> tuple[U8, list[Fault]]:
        """
        Decode a mask.

        Returns
        -------
        labels : (H, W) uint8
            0..K-1, 255 = ignored, or neither, of which the faults tell.
        faults : list of Fault

        Raises
        ------
        DataError
            Where it is in colours, and the data set knows none.
        """
        if mask.pixels.ndim == 3:
            return decode_colours(mask.pixels, self.colours, self.classes, file)
        labels = self.decode(mask.pixels)
        faults = []
        for value, pixels in _unknown(mask.pixels, labels, self.classes).items():
            message = f"{file}: label {value} ({pixels} pixels) is not a class of {self.name}, expected {self._known_values()}"
            faults.append(Fault("value", file, message, value, pixels))
        return labels, faults

    def _known_values(self) -> str:
        labels = self.decode(np.arange(256, dtype=np.uint8))
        classes, ignored = np.flatnonzero(labels < len(self.classes)), np.flatnonzero(labels == IGNORE_INDEX)
        return f"{_ranges(classes)} and {_ranges(ignored)} (ignored)" if len(ignored) else _ranges(classes)

    def size(self, index: int) -> tuple[int, int]:
        """
        Return the size that an image will have, (height, width), from the head of its file alone.

        Raises
        ------
        DataError
            Where the file is missing or no image.
        """
        return network_size(read_size(self.pairs[index].image, self.rule), self.rule)

    def list_sha256(self) -> str:
        """SHA-256 of the names of the images, one a line: it tells two splits apart."""
        return sha256_of_bytes("\n".join(pair.name for pair in self.pairs).encode())

    def meaning_sha256(self) -> str:
        """SHA-256 of what the values and colours of the masks mean: what is ignored, and which class is which."""
        meaning = self.decode(np.arange(256, dtype=np.uint8)).tobytes()
        return sha256_of_bytes(meaning + repr(sorted((self.colours or {}).items())).encode())


def _unknown(values: U8, labels: U8, classes: Classes) -> dict[int, int]:
    """Values whose labels are neither a class nor 255, each with its number of pixels."""
    if not ((labels >= len(classes)) & (labels != IGNORE_INDEX)).any():
        return {}
    counts = np.bincount(values[(labels >= len(classes)) & (labels != IGNORE_INDEX)].ravel(), minlength=256)
    return {int(value): int(counts[value]) for value in np.flatnonzero(counts)}


def _ranges(values: npt.NDArray[np.integer]) -> str:
    """Write numbers in ascending order as 0..2, 7, 11..13."""
    runs = np.split(values, np.flatnonzero(np.diff(values) > 1) + 1)
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}..{run[-1]}" for run in runs)


def _unreadable(path: Path, error: DataError) -> Fault:
    return Fault("unreadable" if os.path.lexists(path) else "missing", path, str(error))
