"""Warnings on a split beside the others: images that two of them share, and image files that none of them lists."""

import os
from collections.abc import Iterable
from pathlib import Path

from ddcat.hashing import sha256_of_file
from ddcat_train.data.dataset import Dataset
from ddcat_train.data.files import PICTURES, walk
from ddcat_train.errors import DataError

__all__ = ["left_out", "shared_images"]


def shared_images(train: Dataset, val: Dataset) -> list[str]:
    """
    Return warnings on images in both splits, by file, content and name; missing files are skipped.

    Returns
    -------
    list of str
        One line for the same images, and one for other images of one name; names of digits alone are no hint.
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


def left_out(dataset: Dataset, others: Iterable[Dataset]) -> list[str]:
    """
    Return warnings on image files that belong to no pair, one line for each folder.

    Parameters
    ----------
    others : iterable of Dataset
        The splits of `dataset.lists`: their files of the same folders are not left out.
    """
    taken = {file for one in (dataset, *others) for pair in one.pairs for file in (pair.image, pair.labels)}
    lines = []
    for folder in dataset.folders:
        try:
            files = [file for file in walk(folder) if file.suffix.lower() in PICTURES and file not in taken]
        except DataError:
            continue  # a missing folder is among the faults
        taken.update(files)  # a folder may lie in another one
        if files:
            example, many = files[0].relative_to(folder), "s" * (len(files) > 1)
            lines.append(f"not taken: {len(files)} file{many} in {folder}, for example {example}")
    return lines
