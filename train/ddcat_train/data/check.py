"""The check of a data set: every pair is read as training reads it."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.table import Table
from rich.text import Text

from ddcat.classes import IGNORE_INDEX, Classes
from ddcat.text import printable
from ddcat_train.data import list_dataset
from ddcat_train.data.dataset import Dataset, Sample
from ddcat_train.data.fault import Fault
from ddcat_train.data.other_splits import left_out, shared_images
from ddcat_train.data.survey import check_labelled, survey, warnings_of
from ddcat_train.errors import DataError

__all__ = ["Report", "as_table", "check", "lines_of"]

_MOST_SIZES = 5
_MOST_FAULTS = 10  # of a kind: a data set in the wrong encoding has one in every file
_MOST_CLIPPED = 0.5  # share of the values that become 0, or 255; images with empty borders have fewer
_FEWEST_LEVELS = 32  # of 256 that the values should reach


@dataclass(frozen=True)
class Report:
    """
    Result of `check`.

    Attributes
    ----------
    name, root, split, long_side
        The checked split, as for `ddcat_train.data.open_dataset`.
    pairs : int
        Number of listed pairs, sound or not; the figures below are of the sound ones.
    sizes : mapping of (width, height) to int
        Number of images of each size, the most frequent first.
    pixels : (K,) int64
        Pixels of each class.
    ignored : int
        Pixels with label 255.
    faults : tuple of Fault
        Empty for a sound data set.
    warnings : tuple of str
        Likely mistakes that are no faults, one line each.
    """

    name: str
    root: Path
    split: str
    long_side: int | None
    classes: Classes
    pairs: int
    sizes: dict[tuple[int, int], int]
    pixels: npt.NDArray[np.int64]
    ignored: int
    faults: tuple[Fault, ...]
    warnings: tuple[str, ...]

    def class_shares(self) -> npt.NDArray[np.float64]:
        """Return each class's share of the pixels that are not ignored, (K,), in [0, 1]; 0 where there is none."""
        return self.pixels / max(1, int(self.pixels.sum()))

    def ignored_share(self) -> float:
        """Return the share of the pixels that are ignored, in [0, 1]."""
        return self.ignored / max(1, int(self.pixels.sum()) + self.ignored)

    def to_json(self) -> dict[str, Any]:
        """Return all of it as values of JSON."""
        return {
            "name": self.name,
            "root": str(self.root),
            "split": self.split,
            "long_side": self.long_side,
            "sound": not self.faults,
            "pairs": self.pairs,
            "sizes": [{"width": size[0], "height": size[1], "images": images} for size, images in self.sizes.items()],
            "class_shares": dict(zip(self.classes.names, self.class_shares().tolist(), strict=True)),
            "ignored_share": self.ignored_share(),
            "faults": [
                {"kind": f.kind, "file": str(f.file), "message": f.message, "value": f.value, "pixels": f.pixels}
                for f in self.faults
            ],
            "warnings": list(self.warnings),
        }


def check(dataset: Dataset, *, advance: Callable[[int], object] = lambda pairs: None) -> Report:
    """
    Read every pair of a split, and collect the faults of the files instead of stopping at the first.

    Parameters
    ----------
    dataset : Dataset
        From `ddcat_train.data.list_dataset`: files may be missing.
    advance : callable, optional
        Receives the number of pairs that were read.

    Raises
    ------
    DataError
        Where no file is at fault and no pixel has a label.
    """
    counts = np.zeros(IGNORE_INDEX + 1, np.int64)
    sizes: Counter[tuple[int, int]] = Counter()
    faults: list[Fault] = []
    levels = np.zeros(256, np.int64)  # only counted for files of 16 bits
    for index in range(len(dataset)):
        result = dataset.inspect(index)
        if isinstance(result, Sample):
            if dataset.rule.values is not None:
                levels += np.bincount(result.image.ravel(), minlength=256)
            counts += np.bincount(result.labels.ravel(), minlength=IGNORE_INDEX + 1)
            height, width = result.labels.shape
            sizes[width, height] += 1
        else:
            faults += result
        advance(1)
    found_labels = survey(dataset)
    if not faults:
        check_labelled(dataset, found_labels)
    return Report(
        name=dataset.name,
        root=dataset.root,
        split=dataset.split,
        long_side=dataset.long_side,
        classes=dataset.classes,
        pairs=len(dataset),
        sizes=dict(sizes.most_common()),
        pixels=counts[: len(dataset.classes)],
        ignored=int(counts[IGNORE_INDEX]),
        faults=tuple(faults),
        warnings=(
            *dataset.notes,
            *warnings_of(dataset, found_labels),
            *_of_values(levels, dataset.rule.values),
            *_of_other_splits(dataset),
        ),
    )


def _of_values(levels: npt.NDArray[np.int64], values: tuple[int, int] | None) -> Iterator[str]:
    """Yield a warning where `data.values` leave little of images of 16 bits; `levels`, (256,), counts the values after it."""
    if values is None or not levels.any():
        return
    low, high = values
    for level, side in ((0, f"{low} or less"), (255, f"{high} or more")):
        if (share := levels[level] / levels.sum()) > _MOST_CLIPPED:
            clipped = f"{share:.0%} of the values of the images are {side}, and become {level}"
            yield f"data.values {low},{high}: {clipped}; check the range"
            return
    if (most := int(np.flatnonzero(levels)[-1])) < _FEWEST_LEVELS:
        yield f"data.values {low},{high}: no value of the images becomes more than {most} of 255; use a smaller range"


def _of_other_splits(dataset: Dataset) -> Iterator[str]:
    """Return warnings that need other splits: files that belong to none, images of train that are also in val."""
    splits = {split: listed for split in {*dataset.lists, "train", "val"} if (listed := _listed(dataset, split)) is not None}
    yield from left_out(dataset, [splits[split] for split in dataset.lists if split in splits])
    if dataset.split == "val" and "train" in splits:
        yield from shared_images(splits["train"], dataset)
    elif dataset.split != "val" and "val" in splits:
        yield from shared_images(dataset, splits["val"])


def _listed(dataset: Dataset, split: str) -> Dataset | None:
    try:
        return list_dataset(dataset.name, dataset.root, split, rule=dataset.rule)
    except DataError:
        return None


def as_table(report: Report) -> Table:
    """Lay a report out as a table."""
    table = Table(show_header=False)
    table.add_column(style="bold")
    table.add_column()
    table.add_row("pairs", f"{report.pairs}, of which {sum(report.sizes.values())} are sound")
    sizes = [f"{width}x{height} ({images})" for (width, height), images in report.sizes.items()]
    more = f" and {len(sizes) - _MOST_SIZES} other sizes" if len(sizes) > _MOST_SIZES else ""
    table.add_row("sizes", ", ".join(sizes[:_MOST_SIZES]) + more)
    for name, share in zip(report.classes.names, report.class_shares(), strict=True):
        table.add_row(Text(printable(name)), f"{share:7.2%}")  # Text: brackets in a name are no markup
    table.add_row("ignored", f"{report.ignored_share():7.2%} of all pixels")
    table.add_row("warnings", str(len(report.warnings)) if report.warnings else "none")
    table.add_row("faults", str(len(report.faults)) if report.faults else "none")
    return table


def lines_of(report: Report) -> list[str]:
    """Return lines on the faults, by kind, with the first ten files of each and the number of the others; then warnings."""
    kinds: dict[str, list[str]] = {}
    for fault in report.faults:
        kinds.setdefault(fault.kind, []).append(f"{fault.kind}: {fault.message}")
    lines = []
    for kind, messages in kinds.items():
        lines += messages[:_MOST_FAULTS]
        if len(messages) > _MOST_FAULTS:
            lines.append(f"{kind}: {len(messages) - _MOST_FAULTS} more; --json FILE names all")
    return [printable(line, 1000) for line in (*lines, *(f"warning: {warning}" for warning in report.warnings))]
