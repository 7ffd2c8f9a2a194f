"""The generated scenes: in the layout of VOC, with classes of their own."""

import dataclasses
from pathlib import Path

from ddcat_train.data.classes_file import CLASSES_FILE
from ddcat_train.data.dataset import Dataset
from ddcat_train.data.voc import voc
from ddcat_train.errors import DataError

__all__ = ["scenes"]


def scenes(root: Path, split: str) -> Dataset:
    """
    List the pairs of generated scenes.

    Raises
    ------
    DataError
        Where they were not generated, naming the command that does it.
    """
    if not (root / CLASSES_FILE).is_file():
        raise DataError(f"{root} holds no generated scenes: make them with 'ddcat data scenes {root}'")
    return dataclasses.replace(voc(root, split), name="scenes")
