"""
The confidence below which an engine abstains, chosen by conformal risk control.

The loss of a unit, an image or a clip, at a threshold t is the share of its labelled pixels that are answered (their confidence
is above t) and wrong. It lies in [0, 1], and falls as t grows. Of n units with the mean loss R(t), the smallest t with
(n R(t) + 1) / (n + 1) <= risk is taken. Then the expected loss of one more unit, exchangeable with those, is at most the risk
(Angelopoulos, Bates, Fisch, Lei and Schuster: Conformal Risk Control, ICLR 2024, theorem 1).
"""

import math

import numpy as np
import numpy.typing as npt

from ddcat.classes import IGNORE_INDEX
from ddcat.clips import UnitKind, grouped
from ddcat.confidence import Abstention
from ddcat.engines import Engine
from ddcat.engines.errors import InputError
from ddcat.engines.tiled import TiledEngine
from ddcat.manifest import Manifest
from ddcat.preprocess import restore
from ddcat_export.data import ExportData
from ddcat_export.errors import ExportError
from ddcat_export.progress import Progress

__all__ = ["LEVELS", "choose", "choose_threshold", "count_levels"]

LEVELS = 1000  # thresholds are multiples of 1 / LEVELS, from 0 to 1: at 1 nothing is answered
_THRESHOLDS = (np.arange(LEVELS + 1) / LEVELS).astype(np.float32)  # the confidence is compared in its own precision


def choose_threshold(data: ExportData, engine: Engine, manifest: Manifest, *, risk: float, progress: Progress) -> Abstention:
    """
    Choose the threshold of an engine on the validation split, from its own answers at the size of the files.

    Images that the manifest's rule cuts are cut here, too.

    Raises
    ------
    ExportError
        Where the data cannot be read, the engine does not take its images, or they are too few for the risk.
    """
    progress("choosing the threshold to abstain by, on the validation split")
    dataset = data.val_dataset()
    units = grouped(dataset.name, [pair.name for pair in dataset.pairs], dataset.clips)
    place_of = units.units()
    count = int(place_of.max()) + 1
    right, wrong = (np.zeros((count, LEVELS + 1), np.int64) for _ in range(2))
    rule, tiled = manifest.preprocessing, None
    for place, sample in zip(place_of, data.whole_val(), strict=True):
        try:
            if rule.cuts(*sample.image.shape[1:3]):
                tiled = tiled or TiledEngine(engine.infer, manifest)
                outputs = tiled.outputs(sample.image[0])
            else:
                outputs = engine.infer(sample.image)
        except InputError as cause:
            raise ExportError(
                f"--risk needs the engine's outputs on the whole validation split, but {sample.name}: {cause}"
            ) from cause
        assert outputs.confidence is not None  # as checked: the bundle gives it
        assert sample.full_labels is not None  # for the type checker: of a data set they are known
        size = (sample.full_labels.shape[0], sample.full_labels.shape[1])
        answered = restore(outputs.labels[0], size), restore(outputs.confidence[0], size)
        for counts, found in zip((right, wrong), count_levels(sample.full_labels, *answered), strict=True):
            counts[place] += found
    labelled = (right + wrong).sum(1) > 0
    return choose(right[labelled], wrong[labelled], risk, kind=units.kind, images=len(dataset))


def count_levels(
    labels: npt.NDArray[np.uint8], answer: npt.NDArray[np.uint8], confidence: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """
    Count the right and the wrong pixels of an image, each by the number of thresholds that its confidence is above.

    Returns
    -------
    right, wrong : (LEVELS + 1,) int64
    """
    known = labels != IGNORE_INDEX
    above = np.searchsorted(_THRESHOLDS, np.clip(np.nan_to_num(confidence[known]), 0, 1), side="left")
    right = answer[known] == labels[known]
    first, second = (np.bincount(above[chosen], minlength=LEVELS + 1) for chosen in (right, ~right))
    return first.astype(np.int64), second.astype(np.int64)


def choose(
    right: npt.NDArray[np.int64],
    wrong: npt.NDArray[np.int64],
    risk: float,
    *,
    kind: UnitKind = "images",
    images: int | None = None,
) -> Abstention:
    """
    Choose the smallest threshold whose risk is promised: see the head of this file.

    Parameters
    ----------
    right, wrong : (U, LEVELS + 1) int64
        Pixels of each unit, each of which has some: see `count_levels`.
    risk : float
        Between 0 and 1.
    kind : "images", "clips" or "blocks"
        What the units are.
    images : int, optional
        Images in them. Default: as many as units.

    Raises
    ------
    ExportError
        Where the units are too few, or so many wrong pixels are of full confidence that nothing would be answered.
    """
    units = len(right)
    answered_right, answered_wrong = (_answered(counts) for counts in (right, wrong))  # (U, LEVELS + 1)
    total = (right + wrong).sum(1)
    losses = (answered_wrong / total[:, None]).mean(0)
    kept = (units * losses + 1) / (units + 1) <= risk
    if not kept[-1]:
        fewest = math.ceil(1 / risk) - 1
        raise ExportError(f"--risk {risk:g} needs at least {fewest} {kind}, and the split has {units}: use a larger risk")
    level = int(kept.argmax())
    answered = int(answered_right[:, level].sum() + answered_wrong[:, level].sum())
    if not answered:
        raise ExportError(f"--risk {risk:g}: no pixel would be answered, so many wrong labels are confident: use a larger one")
    return Abstention(
        threshold=level / LEVELS,
        risk=risk,
        units=units,
        kind=kind,
        images=units if images is None else images,
        found=float(losses[level]),
        error=int(answered_wrong[:, level].sum()) / answered,
        abstained=1 - answered / int(total.sum()),
    )


def _answered(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the pixels that are answered at each threshold: those above more thresholds than come before it."""
    answered: npt.NDArray[np.int64] = counts.sum(1, keepdims=True) - counts.cumsum(1)
    return answered
