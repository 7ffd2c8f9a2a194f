"""Data sets in the layout of Pascal VOC: lists in ImageSets/Segmentation, JPEGImages, SegmentationClass."""

from pathlib import Path

from ddcat.classes import VOC
from ddcat_train.data.base import Dataset, Pair
from ddcat_train.data.classes_file import CLASSES_FILE, read_classes, read_clips
from ddcat_train.errors import DataError

__all__ = ["read_list", "voc"]


def voc(root: Path, split: str) -> Dataset:
    """
    List the pairs of `ImageSets/Segmentation/<split>.txt`.

    A line is a name (`JPEGImages/<name>.jpg`, `SegmentationClass/<name>.png`), or the image and the labels, as in the lists of
    the augmented training set: `/JPEGImages/x.jpg /SegmentationClassAug/x.png`, both relative to `root`. The classes are those
    of `classes.yaml` in `root` if there is one, else the 21 of VOC. The files need not exist.

    Raises
    ------
    DataError
    """
    folder = root / "ImageSets" / "Segmentation"
    if not folder.is_dir():
        raise DataError(f"{root} is not laid out as Pascal VOC, {folder} is missing: name the folder that holds ImageSets")
    own = root / CLASSES_FILE
    classes, clips = (read_classes(own), read_clips(own)) if own.exists() else (VOC, None)
    pairs = tuple(_pair(root, columns) for columns in read_list(folder / f"{split}.txt"))
    return Dataset("voc", root, split, classes, pairs, clips=clips)


def read_list(path: Path) -> list[list[str]]:
    """
    Read the lines of a list file, each as its one or two columns; empty lines are passed over.

    Raises
    ------
    DataError
        Where it cannot be read (the lists beside it are named), is empty, or has a line of more columns.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as cause:
        beside = ", ".join(sorted(file.stem for file in path.parent.glob("*.txt") if file != path)) or "none"
        raise DataError(
            f"cannot read the list {path}; splits that have a list there: {beside} (training takes one by "
            "--set data.train_split=NAME)"
        ) from cause
    lines = [line.split() for line in text.splitlines() if line.strip()]
    if not lines:
        raise DataError(f"the list {path} is empty: one image a line would be right")
    for line in lines:
        if len(line) > 2:
            raise DataError(f"{path}: {' '.join(line)!r} has {len(line)} columns: a name, or 'image labels', would be right")
    return lines


def _pair(root: Path, columns: list[str]) -> Pair:
    if len(columns) == 1:
        name = columns[0]
        return Pair(name, root / "JPEGImages" / f"{name}.jpg", root / "SegmentationClass" / f"{name}.png")
    image, labels = (root / column.lstrip("/") for column in columns)
    return Pair(image.stem, image, labels)
