"""The plainest layout: images/, labels/ and classes.yaml."""

from pathlib import Path

from ddcat_train.data.base import Dataset, Pair
from ddcat_train.data.classes_file import CLASSES_FILE, read_classes, read_clips
from ddcat_train.errors import DataError

__all__ = ["folder"]

_SUFFIXES = {".jpg", ".jpeg", ".png"}


def folder(root: Path, split: str) -> Dataset:
    """
    Pair `images/<split>/x.jpg` (.jpeg, .png) with `labels/<split>/x.png`, in the order of the names.

    Where `images` has no folders, its own files are the one split there is, whatever its name. An image without labels and
    labels without an image are listed too: the files need not exist.

    Raises
    ------
    DataError
    """
    images, labels = root / "images", root / "labels"
    for needed in (images, labels):
        if not needed.is_dir():
            raise DataError(f"{needed} is missing: a folder that holds images, labels and {CLASSES_FILE} would be right")
    splits = sorted(child.name for child in images.iterdir() if child.is_dir())
    if splits:
        if split not in splits:
            raise DataError(f"{images / split} is missing; splits there: {', '.join(splits)}")
        images, labels = images / split, labels / split
    classes = read_classes(root / CLASSES_FILE)
    found: dict[str, Path] = {}
    for file in sorted(images.iterdir()):
        if file.suffix.lower() in _SUFFIXES:
            if file.stem in found:
                raise DataError(f"{found[file.stem]} and {file} have one name: labels/{file.stem}.png can be that of one only")
            found[file.stem] = file
    labelled = sorted(file.stem for file in labels.glob("*.png"))
    if found and labelled and not found.keys() & set(labelled):
        raise DataError(
            f"no image in {images} has labels of its name in {labels}: {next(iter(found.values())).name} needs "
            f"{next(iter(found))}.png, not {labelled[0]}.png"
        )
    for name in labelled:
        found.setdefault(name, images / f"{name}.jpg")
    if not found:
        raise DataError(f"{images} holds no image: files that end in {', '.join(sorted(_SUFFIXES))} would be right")
    pairs = tuple(Pair(name, found[name], labels / f"{name}.png") for name in sorted(found))
    return Dataset("folder", root, split, classes, pairs, clips=read_clips(root / CLASSES_FILE))
