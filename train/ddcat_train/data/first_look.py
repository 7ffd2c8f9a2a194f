"""What is looked at before a training begins: all masks once, so that no mistake in them is found after days."""

from collections.abc import Iterable

from ddcat.progress import progress
from ddcat_train.data.base import Dataset
from ddcat_train.data.left_out import left_out
from ddcat_train.data.overlap import shared_images
from ddcat_train.data.survey import check_labelled, survey, warnings_of

__all__ = ["first_look"]


def first_look(train: Dataset, val: Dataset) -> list[str]:
    """
    Read all masks of the two splits, and say in one line each what is most likely a mistake.

    Raises
    ------
    DataError
        Where a split has no labelled pixel: nothing can be learnt from it, or no score computed on it.
    """
    lines: list[str] = []
    with progress("reading the labels", len(train) + len(val)) as advance:
        for dataset in (train, val):
            found = survey(dataset, advance=advance)
            check_labelled(dataset, found)
            lines += [*_of_files(dataset, found.faulty), *warnings_of(dataset, found)]
    return [f"warning: {line}" for line in (*lines, *shared_images(train, val))]


def _of_files(dataset: Dataset, faulty: int) -> Iterable[str]:
    command = f"'ddcat data check {dataset.name} {dataset.root} --split {dataset.split}'"
    if faulty:
        yield f"{faulty} of the {len(dataset)} pairs of {dataset.split} cannot be read: {command} names them"
    yield from dataset.notes
    if not dataset.lists:  # otherwise a list says what is taken
        yield from left_out(dataset, ())
