"""
Cityscapes: leftImg8bit/<split>/<city>/*.png with gtFine/<split>/<city>/*.png, and the table from ids to the 19 classes.

ACDC has the same classes, in fog, at night, in rain and in snow: rgb_anon/<condition>/<split>/ with gt/<condition>/<split>/.
"""

from pathlib import Path

import numpy as np

from ddcat.classes import CITYSCAPES, IGNORE_INDEX
from ddcat_train.data.dataset import U8, Dataset, Pair, identity
from ddcat_train.data.files import hidden, same_name, walk
from ddcat_train.errors import DataError

__all__ = ["cityscapes", "train_ids"]

_IMAGE = "_leftImg8bit.png"
_ACDC_IMAGE, _ACDC_KIND = "_rgb_anon.png", "gt"

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
    and labels without an image are listed too: the files need not exist. Raises `DataError`.
    """
    if (root / "rgb_anon").is_dir():
        return _acdc(root, split)
    images, labels = root / "leftImg8bit" / split, root / "gtFine" / split
    if not labels.is_dir() and (root / "gtCoarse" / split).is_dir():
        labels = root / "gtCoarse" / split
    for folder in (images, labels):
        if not folder.is_dir():
            present = sorted(child.name for child in folder.parent.glob("*/") if not hidden(child.name))
            raise DataError(
                f"{folder} is missing: name the folder that holds leftImg8bit and gtFine, or rgb_anon and gt of ACDC; splits "
                f"there: {', '.join(present) or 'none'}"
            )
    kind = labels.parent.name
    notes = ("the labels are those of gtCoarse",) if kind == "gtCoarse" else ()
    return _dataset(root, split, [(images, labels)], _IMAGE, kind, notes)


def _acdc(root: Path, split: str) -> Dataset:
    """List ACDC: a split such as val in all conditions, or in one of them as val-fog."""
    name, _, condition = split.partition("-")
    conditions = sorted(folder.name for folder in (root / "rgb_anon").glob("*/") if not hidden(folder.name))
    chosen = [one for one in conditions if condition in ("", one) and (root / "rgb_anon" / one / name).is_dir()]
    if not chosen:
        raise DataError(
            f"{root / 'rgb_anon'} has no split {split!r}: use train, val, or with one of its conditions "
            f"({', '.join(conditions) or 'none'}) such as val-fog"
        )
    folders = [(root / "rgb_anon" / one / name, root / _ACDC_KIND / one / name) for one in chosen]
    for _, labels in folders:
        if not labels.is_dir():
            raise DataError(f"{labels} is missing: the labels of ACDC are a second archive, gt; put it beside rgb_anon")
    return _dataset(root, split, folders, _ACDC_IMAGE, _ACDC_KIND, ())


def _dataset(
    root: Path, split: str, folders: list[tuple[Path, Path]], image_ending: str, kind: str, notes: tuple[str, ...]
) -> Dataset:
    """Pair the images and labels of some folders, by the path within theirs and the part of the name that they share."""
    # the better labels, where any folder has them: all files of a split are of one kind
    endings = [f"_{kind}_{labels}.png" for labels in ("labelTrainIds", "labelIds")]
    ending = next((one for one in endings if any(_by_name(labels, one) for _, labels in folders)), endings[-1])
    pairs: list[Pair] = []
    for images, labels in folders:
        photographs, masks = _by_name(images, image_ending), _by_name(labels, ending)
        pairs += [
            Pair(
                name.rpartition("/")[2],
                photographs.get(name, images / (name + image_ending)),
                masks.get(name, labels / (name + ending)),
            )
            for name in sorted({*photographs, *masks})
        ]
    if not pairs:
        raise DataError(f"{folders[0][0]} holds no image, expected files like aachen/aachen_000000_000019{image_ending}")
    decode = identity if ending.endswith("_labelTrainIds.png") else train_ids
    shown = tuple(images for images, _ in folders)
    return Dataset("cityscapes", root, split, CITYSCAPES, tuple(pairs), decode, folders=shown, notes=notes).with_own_classes()


def train_ids(ids: U8) -> U8:
    """Map Cityscapes' ids 0..33 to the classes 0..18 and 255; other values stay as they are."""
    return np.asarray(_TABLE[ids], dtype=np.uint8)


def _by_name(folder: Path, ending: str) -> dict[str, Path]:
    """Return the files of a folder and its cities with an ending, by their path without it."""
    files = (file for file in walk(folder) if file.name.lower().endswith(ending.lower()))
    return {same_name(file.relative_to(folder).as_posix()[: -len(ending)]): file for file in files}
