"""Number of training pixels of each class, by which SEA-MCE-Bal balances the classes."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ddcat_train.data import Dataset, open_dataset
from ddcat_train.data.pictures import read_mask
from ddcat_train.errors import DataError
from ddcat_train.reference import Reference

__all__ = ["ClassPixels", "count_class_pixels"]


class ClassPixels(NamedTuple):
    """
    Pixels of each class.

    Attributes
    ----------
    counts : (K,) int64
    source : str
        Description of the images.
    """

    counts: npt.NDArray[np.int64]
    source: str


def count_class_pixels(reference: Reference, dataset: Dataset) -> ClassPixels:
    """
    Count the labels of the split that a model was trained on, as they are in the files.

    Parameters
    ----------
    reference : Reference
    dataset : Dataset
        The evaluated data set. Labels are counted on its training split, or, if that is missing, on this split, as `source`
        records.
    """
    name = reference.data.train_split
    try:
        return _count(open_dataset(dataset.name, dataset.root, name))
    except DataError as missing:
        pixels = _count(dataset)
        return pixels._replace(source=f"{pixels.source}, for the {name} split cannot be read: {missing}")


def _count(dataset: Dataset) -> ClassPixels:
    total = np.zeros(256, np.int64)
    for pair in dataset.pairs:
        total += np.bincount(dataset.labels_of(read_mask(pair.labels), pair.labels)[0].ravel(), minlength=256)
    return ClassPixels(total[: len(dataset.classes)], f"the labels of the {len(dataset)} images of the {dataset.split} split")
