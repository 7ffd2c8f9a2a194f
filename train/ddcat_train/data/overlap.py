"""Images that two splits share: what is scored on them says nothing about new images."""

import os
from collections.abc import Iterable
from pathlib import Path

from ddcat.hashing import sha256_of_file
from ddcat_train.data.base import Dataset

__all__ = ["shared_images"]


def shared_images(train: Dataset, val: Dataset) -> list[str]:
    """
    Tell of images that are in both splits, by the file, by its content and by its name; files that are missing are passed over.

    Returns
    -------
    list of str
        One line for the same images, and one for other images of one name; names of digits alone say nothing, and are not told.
    """
    ours, theirs = _sizes(train), _sizes(val)
    both = set(ours.values()) & set(theirs.values())  # only files of equal size can be equal
    contents = {_content(file) for file, size in ours.items() if size in both} - {None}
    same = [file for file, size in theirs.items() if size in both and _content(file) in contents]
    lines = []
    if same:
        lines.append(
            f"{len(same)} of the {len(val)} images of {val.split} are in {train.split}, too, for example {same[0]}: scores on "
            "them say nothing about new images"
        )
    names = {pair.name for pair in train.pairs} & {pair.name for pair in val.pairs if pair.image not in set(same)}
    telling = sorted(name for name in names if not all(part.isdigit() for part in name.replace("_", "/").split("/")))
    if telling:
        lines.append(
            f"{len(telling)} names are in {train.split} and in {val.split}, for files that differ, for example {telling[0]}: "
            "make sure that they are not the same images"
        )
    return lines


def _sizes(dataset: Dataset) -> dict[Path, int]:
    return dict(_existing(pair.image for pair in dataset.pairs))


def _existing(files: Iterable[Path]) -> Iterable[tuple[Path, int]]:
    for file in files:
        try:
            yield file, os.stat(file).st_size
        except (OSError, ValueError):
            continue


def _content(file: Path) -> str | None:
    try:
        return sha256_of_file(file) if file.is_file() else None
    except OSError:
        return None
