"""The plainest layout: images/, labels/ and classes.yaml."""

from pathlib import Path

from ddcat_train.data.classes_file import CLASSES_FILE, read_legend
from ddcat_train.data.dataset import Dataset, Pair
from ddcat_train.data.files import IMAGES, LABELS, PICTURES, hidden, same_name, walk
from ddcat_train.errors import DataError

__all__ = ["folder"]


def folder(root: Path, split: str, suffixes: tuple[str, ...] = IMAGES) -> Dataset:
    """
    Pair `images/<split>/x.jpg` (.jpeg, .png; or `suffixes`) with `labels/<split>/x.png`, in the order of the names; in
    sub-folders, too.

    Where `images` has no folders, its own files are the one split there is, whatever its name. An image without labels and
    labels without an image are listed too: the files need not exist. Raises `DataError`.
    """
    images, labels, notes = root / "images", root / "labels", []
    for needed in (images, labels):
        if not needed.is_dir():
            raise DataError(f"{needed} is missing: use a folder that holds images, labels and {CLASSES_FILE}")
    entries = [child for child in images.iterdir() if not hidden(child.name)]
    splits = sorted(child.name for child in entries if child.is_dir())
    if splits:
        beside = sum(child.suffix.lower() in PICTURES for child in entries)
        if split not in splits:
            more = f"; {beside} images lie beside them" if beside else ""
            raise DataError(f"{images / split} is missing; splits there: {', '.join(splits)}{more}")
        if beside:
            notes.append(f"{beside} files in {images}, beside the folders of the splits, are not taken")
        images, labels = images / split, labels / split
    legend = read_legend(root / CLASSES_FILE)
    files = _by_name(images, suffixes)
    masks = _by_name(labels, LABELS) if labels.is_dir() else {}
    if files and masks and not files.keys() & masks:
        name, mask = next(iter(files)), next(iter(masks.values()))
        raise DataError(
            f"no image in {images} has labels of its name in {labels}: {files[name].name} needs "
            f"{name}.png, not {mask.relative_to(labels)}"
        )
    if not files and not masks:
        raise DataError(f"{images} holds no image, expected files that end in {', '.join(suffixes)}")
    pairs = []
    for name in sorted({*files, *masks}):
        image = files[name] if name in files else images / masks[name].relative_to(labels).with_suffix(".jpg")
        mask = masks[name] if name in masks else labels / image.relative_to(images).with_suffix(".png")
        pairs.append(Pair(name, image, mask))
    dataset = Dataset("folder", root, split, legend.classes, tuple(pairs), folders=(images, labels), notes=tuple(notes))
    return dataset.with_legend(legend)


def _by_name(folder: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    """Return the files of a folder and its sub-folders by their path without its suffix, in one Unicode form."""
    files: dict[str, Path] = {}
    for file in walk(folder):
        if file.suffix.lower() not in suffixes:
            continue
        name = same_name(file.relative_to(folder).with_suffix("").as_posix())
        if name in files:
            raise DataError(f"{files[name]} and {file} have one name: labels/{name}.png can be that of one only")
        files[name] = file
    return dict(sorted(files.items()))
