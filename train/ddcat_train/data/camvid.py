"""CamVid in the layout of the SegNet tutorial: <split>.txt lists, a folder of images and one of annotations for each split."""

from pathlib import Path, PurePosixPath

import numpy as np

from ddcat.classes import CAMVID, IGNORE
from ddcat_train.data.base import U8, Dataset, Pair
from ddcat_train.data.voc import read_list
from ddcat_train.errors import DataError

__all__ = ["camvid"]

_VOID = 11
_SUFFIXES = (".png", ".jpg")  # the original images are PNG, smaller copies are JPEG


def camvid(root: Path, split: str) -> Dataset:
    """
    List the pairs of `<split>.txt`, whose lines are 'image labels'.

    The paths are relative to `root` (`train/x.jpg trainannot/x.png`) or those of the tutorial's own machine
    (`/SegNet/CamVid/train/x.png /SegNet/CamVid/trainannot/x.png`): only the last folder and the file count. An image may be
    .png or .jpg whatever the list says. Label 11, void, becomes 255. The files need not exist.

    Raises
    ------
    DataError
    """
    if not root.is_dir():
        raise DataError(f"{root} is not a folder: name the one that holds {split}.txt of CamVid")
    pairs = []
    for columns in read_list(root / f"{split}.txt"):
        if len(columns) != 2:
            raise DataError(f"{root / f'{split}.txt'}: {columns[0]!r} stands alone: 'image labels' would be right")
        image, labels = (root.joinpath(*PurePosixPath(column).parts[-2:]) for column in columns)
        pairs.append(Pair(image.stem, _present(image), labels))
    return Dataset("camvid", root, split, CAMVID, tuple(pairs), _decode)


def _decode(indices: U8) -> U8:
    return np.where(indices == _VOID, np.uint8(IGNORE), indices)


def _present(image: Path) -> Path:
    if image.exists():
        return image
    return next((other for suffix in _SUFFIXES if (other := image.with_suffix(suffix)).exists()), image)
