"""The check before a training begins: all masks are read once, so that a mistake is not found after days."""

from collections.abc import Iterable

from ddcat.progress import progress
from ddcat_train.data.dataset import Dataset
from ddcat_train.data.other_splits import left_out, shared_images
from ddcat_train.data.survey import check_labelled, survey, warnings_of

__all__ = ["first_look"]


def first_look(train: Dataset, val: Dataset) -> list[str]:
    """
    Read all masks of the two splits, and return likely mistakes, one line each.

    Raises
    ------
    DataError
        Where a split has no labelled pixel: it can neither be trained nor scored on.
    """
    lines: list[str] = []
    with progress("reading the labels", len(train) + len(val)) as advance:
        for dataset in (train, val):
            result = survey(dataset, advance=advance)
            check_labelled(dataset, result)
            lines += [*_of_files(dataset, result.faulty), *warnings_of(dataset, result)]
    return [f"warning: {line}" for line in (*lines, *shared_images(train, val))]


def _of_files(dataset: Dataset, faulty: int) -> Iterable[str]:
    command = f"'ddcat data check {dataset.name} {dataset.root} --split {dataset.split}'"
    if faulty:
        yield f"{faulty} of the {len(dataset)} pairs of {dataset.split} cannot be read: {command} names them"
    yield from dataset.notes
    if not dataset.lists:  # otherwise a list says which files are used
        yield from left_out(dataset, ())
