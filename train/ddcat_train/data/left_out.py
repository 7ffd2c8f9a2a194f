"""Image files in the folders of a data set that none of its pairs takes."""

from collections.abc import Iterable

from ddcat_train.data.base import Dataset
from ddcat_train.data.files import PICTURES, walk
from ddcat_train.errors import DataError

__all__ = ["left_out"]


def left_out(dataset: Dataset, others: Iterable[Dataset]) -> list[str]:
    """
    Tell of files that look like images and belong to no pair, one line for each folder.

    Parameters
    ----------
    dataset : Dataset
    others : iterable of Dataset
        Those of `dataset.lists`: what they take of the same folders is not left out.
    """
    taken = {file for one in (dataset, *others) for pair in one.pairs for file in (pair.image, pair.labels)}
    lines = []
    for folder in dataset.folders:
        try:
            files = [file for file in walk(folder) if file.suffix.lower() in PICTURES and file not in taken]
        except DataError:
            continue  # it is missing, of which the faults tell
        taken.update(files)  # a folder may lie in another one
        if files:
            example, many = files[0].relative_to(folder), "s" * (len(files) > 1)
            lines.append(f"not taken: {len(files)} file{many} in {folder}, for example {example}")
    return lines
