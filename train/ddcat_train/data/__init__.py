"""
Data sets: reading, augmenting, batching, checking, generating.

The batches are in `ddcat_train.data.loader`, which is not imported here: it needs torch, and `ddcat data --help` does not.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from ddcat.preprocess import AS_STORED, FileRule
from ddcat.text import printable
from ddcat_train.data.augment import AUGMENTATIONS, Augment, corrupted
from ddcat_train.data.camvid import camvid
from ddcat_train.data.cityscapes import cityscapes
from ddcat_train.data.dataset import Dataset, Pair, Sample
from ddcat_train.data.files import IMAGES, SCENES, is_file
from ddcat_train.data.folder import folder
from ddcat_train.data.synthetic.dataset import scenes
from ddcat_train.data.voc import voc
from ddcat_train.errors import DataError

__all__ = ["AUGMENTATIONS", "DATASETS", "Augment", "Dataset", "Pair", "Sample", "corrupted", "list_dataset", "open_dataset"]

DATASETS: dict[str, Callable[[Path, str], Dataset]] = {
    "scenes": scenes,
    "voc": voc,
    "cityscapes": cityscapes,
    "camvid": camvid,
    "folder": folder,
}


def list_dataset(name: str, root: Path, split: str, *, rule: FileRule = AS_STORED) -> Dataset:
    """
    List a split whose files may be missing: what `ddcat data check` looks at.

    Raises
    ------
    DataError
        Where the name is unknown, or a folder or list is missing or empty.
    """
    if name not in DATASETS:
        raise DataError(f"there is no data set {printable(name, 40)!r}: use {', '.join(DATASETS)}")
    with contextlib.suppress(RuntimeError):  # a ~ of nobody's: it is a name like any other
        root = root.expanduser()
    _check_names([root / split], "the path of the data set")
    dataset = DATASETS[name](root, split) if rule.bands is None else folder(root, split, (*IMAGES, *SCENES))
    _check_names([file for pair in dataset.pairs for file in (pair.image, pair.labels)], "the path of a file")
    return dataclasses.replace(dataset, rule=rule)


def _check_names(paths: Sequence[Path], what: str) -> None:
    """Refuse names that are not UTF-8: no checkpoint, log or report could hold them."""
    odd = [path for path in paths if str(path) != str(path).encode(errors="ignore").decode()]
    if odd:
        others = f" and {len(odd) - 1} more" if len(odd) > 1 else ""
        raise DataError(f"{what} is not UTF-8, {odd[0]}{others}: rename it ('convmv -f latin1 -t utf8' does)")


def open_dataset(name: str, root: Path, split: str, *, rule: FileRule = AS_STORED) -> Dataset:
    """
    Open a split of a data set, every file of which is there.

    Parameters
    ----------
    name : str
        A key of `DATASETS`.
    split : str
        For example "train" or "val".
    rule : FileRule
        How images are read; labels are resized with them.

    Raises
    ------
    DataError
        Where the name is unknown, a folder or list is missing or empty, or a pair lacks one of its files.
    """
    dataset = list_dataset(name, root, split, rule=rule)
    missing = [file for pair in dataset.pairs for file in (pair.image, pair.labels) if not is_file(file)]
    if missing:
        count, command = len(missing) - 1, f"'ddcat data check {name} {root} --split {split}'"
        others = f" and {count} other file{'s' * (count > 1)} of {name} {split} are" if count else f" of {name} {split} is"
        raise DataError(f"{missing[0]}{others} missing: {command} names all that is")
    return dataset
