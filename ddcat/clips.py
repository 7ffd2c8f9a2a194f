"""Which images of a data set belong together: frames of video resemble their neighbours, and are not one more image each."""

import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from ddcat.errors import DdcatError

__all__ = ["BLOCK", "FEWEST_UNITS", "SEQUENCES", "Grouping", "UnitKind", "grouped"]

BLOCK = 10  # frames that belong together, where there are too few clips
FEWEST_UNITS = 10  # images, clips, or blocks of frames: fewer say too little

# CamVid: a frame in each second of a few drives, of which few are evaluated; so blocks of frames may stand for clips
SEQUENCES = {"camvid": r"(.*)_"}

UnitKind = Literal["images", "clips", "blocks"]


class Grouping(NamedTuple):
    """
    What stands for itself.

    Attributes
    ----------
    kind : "images", "clips" or "blocks"
        Each image; each clip of frames; or, where there are few clips, blocks of `BLOCK` frames that follow each other.
    groups : (I,) int64
        The clip of each image; its own place for the other kinds.
    """

    kind: UnitKind
    groups: npt.NDArray[np.int64]

    def units(self) -> npt.NDArray[np.int64]:
        """Return the unit of each image, (I,), from 0 on; what is left of the last block belongs to the one before it."""
        if self.kind != "blocks":
            return self.groups
        return np.minimum(self.groups // BLOCK, max(0, len(self.groups) // BLOCK - 1))


def grouped(data: str, names: Sequence[str], clips: str | None = None) -> Grouping:
    """
    Group the images of a split.

    Parameters
    ----------
    data : str
        Name of the data set's reader.
    names : sequence of str
        Names of the images, in the order of the split.
    clips : str, optional
        Expression for the clip of a name: see `ddcat_train.data.Dataset`.

    Raises
    ------
    DdcatError
        If `clips` is no expression, or one of the names has no clip by it.
    """
    places = np.arange(len(names))
    pattern = clips or SEQUENCES.get(data)
    if pattern is None:
        return Grouping("images", places)
    groups = np.unique([_clip(pattern, name) for name in names], return_inverse=True)[1].astype(np.int64)
    units = len(np.unique(groups))
    if units == len(names):
        return Grouping("images", places)
    return Grouping("blocks", places) if clips is None and units < FEWEST_UNITS else Grouping("clips", groups)


def _clip(pattern: str, name: str) -> str:
    try:
        match = re.search(pattern, name)
    except (re.error, OverflowError, RecursionError) as cause:  # the last two of hostile ones
        raise DdcatError(f"clips {pattern!r}: expected a regular expression, got an error: {cause}") from cause
    if match is None:
        raise DdcatError(
            f"clips {pattern!r} finds no clip in the name of the image {name}: use an expression that fits all names"
        )
    return match[1] if match.re.groups and match[1] is not None else match[0]
