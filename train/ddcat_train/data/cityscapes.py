"""Cityscapes: leftImg8bit/<split>/<city>/*.png with gtFine/<split>/<city>/*.png, and the table from ids to the 19 classes."""

from pathlib import Path

import numpy as np

from ddcat.classes import CITYSCAPES, IGNORE
from ddcat_train.data.base import U8, Dataset, Pair, unchanged
from ddcat_train.errors import DataError

__all__ = ["cityscapes", "train_ids"]

_IMAGE = "_leftImg8bit.png"
_LABELS = "_gtFine_{}.png"

_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)  # of the classes 0, 1, ..., 18
_TABLE = np.arange(256, dtype=np.uint8)  # ids above 33 do not exist: they stay as they are, to be refused when read
_TABLE[:34] = IGNORE
_TABLE[list(_IDS)] = np.arange(len(_IDS))
_TABLE.flags.writeable = False


def cityscapes(root: Path, split: str) -> Dataset:
    """
    List the pairs of a split, in the order of city and name.

    The labels are the `labelTrainIds` files where the split has such, else the `labelIds` ones, taken to the 19 classes by
    `train_ids`. An image without labels and labels without an image are listed too: the files need not exist.

    Raises
    ------
    DataError
    """
    images, labels = root / "leftImg8bit" / split, root / "gtFine" / split
    for folder in (images, labels):
        if not folder.is_dir():
            present = ", ".join(sorted(child.name for child in folder.parent.glob("*/"))) or "none"
            raise DataError(f"{folder} is missing: name the folder that holds leftImg8bit and gtFine; splits there: {present}")
    kind = "labelTrainIds" if any(labels.glob(f"*/*{_LABELS.format('labelTrainIds')}")) else "labelIds"
    ending = _LABELS.format(kind)
    stems = {_stem(file, images, _IMAGE) for file in images.glob(f"*/*{_IMAGE}")}
    stems |= {_stem(file, labels, ending) for file in labels.glob(f"*/*{ending}")}
    pairs = tuple(Pair(stem.rpartition("/")[2], images / (stem + _IMAGE), labels / (stem + ending)) for stem in sorted(stems))
    if not pairs:
        raise DataError(f"{images} holds no image: files like aachen/aachen_000000_000019{_IMAGE} would be right")
    return Dataset("cityscapes", root, split, CITYSCAPES, pairs, unchanged if kind == "labelTrainIds" else train_ids)


def train_ids(ids: U8) -> U8:
    """Take Cityscapes' ids 0..33 to the classes 0..18 and 255; other values stay as they are."""
    return np.asarray(_TABLE[ids], dtype=np.uint8)


def _stem(file: Path, folder: Path, ending: str) -> str:
    return file.relative_to(folder).as_posix().removesuffix(ending)
