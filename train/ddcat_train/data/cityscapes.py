"""Cityscapes: leftImg8bit/<split>/<city>/*.png with gtFine/<split>/<city>/*.png, and the table from ids to the 19 classes."""

from pathlib import Path

import numpy as np

from ddcat.classes import CITYSCAPES, IGNORE_INDEX
from ddcat_train.data.dataset import U8, Dataset, Pair, identity
from ddcat_train.data.files import hidden, same_name, walk
from ddcat_train.errors import DataError

__all__ = ["cityscapes", "train_ids"]

_IMAGE = "_leftImg8bit.png"

_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)  # of the classes 0, 1, ..., 18
_TABLE = np.arange(256, dtype=np.uint8)  # ids above 33 do not exist: they stay as they are, to be refused when read
_TABLE[:34] = IGNORE_INDEX
_TABLE[list(_IDS)] = np.arange(len(_IDS))
_TABLE.flags.writeable = False


def cityscapes(root: Path, split: str) -> Dataset:
    """
    List the pairs of a split, in the order of city and name.

    The labels are the `labelTrainIds` files where the split has such, else the `labelIds` ones, taken to the 19 classes by
    `train_ids`: those of `gtFine`, or of `gtCoarse` where the split has no fine ones, as train_extra. An image without labels
    and labels without an image are listed too: the files need not exist.

    Raises
    ------
    DataError
    """
    images, labels = root / "leftImg8bit" / split, root / "gtFine" / split
    if not labels.is_dir() and (root / "gtCoarse" / split).is_dir():
        labels = root / "gtCoarse" / split
    for folder in (images, labels):
        if not folder.is_dir():
            present = sorted(child.name for child in folder.parent.glob("*/") if not hidden(child.name))
            raise DataError(
                f"{folder} is missing: name the folder that holds leftImg8bit and gtFine; splits there: "
                f"{', '.join(present) or 'none'}"
            )
    kind = labels.parent.name
    photographs, ending = _by_name(images, _IMAGE), ""
    masks: dict[str, Path] = {}
    for of_labels in ("labelTrainIds", "labelIds"):
        if not masks:
            ending = f"_{kind}_{of_labels}.png"
            masks = _by_name(labels, ending)
    pairs = tuple(
        Pair(
            name.rpartition("/")[2], photographs.get(name, images / (name + _IMAGE)), masks.get(name, labels / (name + ending))
        )
        for name in sorted({*photographs, *masks})
    )
    if not pairs:
        raise DataError(f"{images} holds no image, expected files like aachen/aachen_000000_000019{_IMAGE}")
    decode = identity if ending.endswith("_labelTrainIds.png") else train_ids
    notes = ("the labels are those of gtCoarse",) if kind == "gtCoarse" else ()
    dataset = Dataset("cityscapes", root, split, CITYSCAPES, pairs, decode, folders=(images,), notes=notes)
    return dataset.with_own_classes()


def train_ids(ids: U8) -> U8:
    """Map Cityscapes' ids 0..33 to the classes 0..18 and 255; other values stay as they are."""
    return np.asarray(_TABLE[ids], dtype=np.uint8)


def _by_name(folder: Path, ending: str) -> dict[str, Path]:
    """Return the files of a folder and its cities with an ending, by their path without it."""
    files = (file for file in walk(folder) if file.name.lower().endswith(ending.lower()))
    return {same_name(file.relative_to(folder).as_posix()[: -len(ending)]): file for file in files}
