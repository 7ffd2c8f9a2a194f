"""CamVid in the layout of the SegNet tutorial: <split>.txt lists, a folder of images and one of annotations for each split."""

from pathlib import Path, PurePosixPath

import numpy as np

from ddcat.classes import CAMVID, IGNORE_INDEX
from ddcat.text import printable
from ddcat_train.data.dataset import U8, Dataset, Pair
from ddcat_train.data.files import IMAGES, LABELS, Finder, is_file
from ddcat_train.data.lists import columns_of, other_lists, read_list
from ddcat_train.errors import DataError

__all__ = ["camvid"]

_VOID = 11


def camvid(root: Path, split: str) -> Dataset:
    """
    List the pairs of `<split>.txt`, whose lines are 'image labels'.

    The paths are relative to `root` (`train/x.jpg trainannot/x.png`) or those of the tutorial's own machine
    (`/SegNet/CamVid/train/x.png /SegNet/CamVid/trainannot/x.png`): only the last folder and the file count. An image may be
    .png or .jpg whatever the list says. Label 11, void, becomes 255; a `classes.yaml` in `root` may give the values other
    meanings. The files need not exist. Raises `DataError`.
    """
    if not root.is_dir():
        raise DataError(f"{root} is not a folder: name the one that holds {split}.txt of CamVid")
    path, finder = root / f"{split}.txt", Finder()

    def located(column: str, suffixes: tuple[str, ...]) -> Path:
        return finder.find(root.joinpath(*PurePosixPath(column).parts[-2:]), suffixes)

    pairs = []
    for line in read_list(path):
        columns = columns_of(line, path, named=lambda text: False, there=lambda text: is_file(located(text, IMAGES)))
        if len(columns) != 2:
            raise DataError(f"{path}: {printable(columns[0], 100)!r} stands alone, expected 'image labels'")
        image, labels = located(columns[0], IMAGES), located(columns[1], LABELS)
        pairs.append(Pair(PurePosixPath(columns[0]).stem, image, labels))
    return Dataset(
        "camvid",
        root,
        split,
        CAMVID,
        tuple(pairs),
        _decode,
        folders=tuple(sorted({file.parent for pair in pairs for file in (pair.image, pair.labels)} - {root})),
        lists=tuple(other_lists(path)),
    ).with_own_classes()


def _decode(indices: U8) -> U8:
    return np.where(indices == _VOID, np.uint8(IGNORE_INDEX), indices)
