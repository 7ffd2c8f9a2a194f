"""Data sets in the layout of Pascal VOC: lists in ImageSets/Segmentation, JPEGImages, SegmentationClass."""

from collections.abc import Callable
from pathlib import Path

from ddcat.classes import VOC
from ddcat_train.data.dataset import Dataset, Pair
from ddcat_train.data.files import IMAGES, LABELS, Finder, is_file
from ddcat_train.data.lists import columns_of, other_lists, read_list
from ddcat_train.errors import DataError

__all__ = ["voc"]

_LABELS = ("SegmentationClass", "SegmentationClassAug")


def voc(root: Path, split: str) -> Dataset:
    """
    List the pairs of `ImageSets/Segmentation/<split>.txt`.

    A line is a name (`JPEGImages/<name>.jpg`, `SegmentationClass/<name>.png`), or the image and the labels, as in the lists of
    the augmented training set: `/JPEGImages/x.jpg /SegmentationClassAug/x.png`, both relative to `root`. Where more of a list's
    names have labels in `SegmentationClassAug`, that folder is taken. The classes are those of `classes.yaml` in `root` if
    there is one, else the 21 of VOC. The files need not exist. Raises `DataError`.
    """
    folder = root / "ImageSets" / "Segmentation"
    if not folder.is_dir():
        raise DataError(f"{root} is not laid out as Pascal VOC, {folder} is missing: name the folder that holds ImageSets")
    find = Finder().find
    lines = read_list(folder / f"{split}.txt")
    columns = [_columns(line, root, folder / f"{split}.txt", find) for line in lines]
    names = [column[0] for column in columns if len(column) == 1]
    present = [sum(is_file(find(root / labels / f"{name}.png", LABELS)) for name in names) for labels in _LABELS]
    labels = _LABELS[present[1] > present[0]]
    pairs = []
    for column in columns:
        if len(column) == 1:
            image, mask = root / "JPEGImages" / f"{column[0]}.jpg", root / labels / f"{column[0]}.png"
            pairs.append(Pair(column[0], find(image, IMAGES), find(mask, LABELS)))
        else:
            image, mask = (root / text.lstrip("/") for text in column)
            pairs.append(Pair(image.stem, find(image, IMAGES), find(mask, LABELS)))
    return Dataset(
        "voc",
        root,
        split,
        VOC,
        tuple(pairs),
        folders=tuple(sorted({root / "JPEGImages", *(pair.labels.parent for pair in pairs)} - {root})),
        lists=tuple(other_lists(folder / f"{split}.txt")),
        notes=(f"the labels are those of {labels}",) if labels != _LABELS[0] else (),
    ).with_own_classes()


def _columns(line: str, root: Path, path: Path, find: Callable[[Path, tuple[str, ...]], Path]) -> tuple[str, ...]:
    def present(name: str) -> bool:
        return is_file(find(root / "JPEGImages" / f"{name}.jpg", IMAGES))

    def name_of(text: str) -> str:
        """Return the name of an image, which some lists have with its suffix."""
        stem, dot, suffix = text.rpartition(".")
        return stem if f"{dot}{suffix}".lower() in IMAGES and not present(text) else text

    columns = columns_of(
        line,
        path,
        named=lambda text: present(name_of(text)),
        there=lambda text: is_file(find(root / text.lstrip("/"), IMAGES)),
    )
    return (name_of(columns[0]),) if len(columns) == 1 else columns
