"""Choose what stays in float, so that a precision holds limits of lost mIoU and equal labels, clean and under attack."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ddcat.engines.base import Images, LoadedGraph
from ddcat.engines.onnxruntime import OrtGraph
from ddcat.manifest_precision import AccuracyDrop, EqualLabels
from ddcat.metrics import confusion_counts, miou
from ddcat_export.data import Sample
from ddcat_export.errors import ExportError

__all__ = ["Evaluator", "Open", "Trial", "fall_back", "few"]

Open = Callable[[bytes], LoadedGraph]
_Labels = list[npt.NDArray[np.uint8]]  # of each image


class Trial(NamedTuple):
    """
    The cost of a choice of layers.

    Attributes
    ----------
    float_layers : int
        Number of the worst layers that are left in float.
    clean, adversarial : float
        Points of mIoU that are lost by the form of the graph that loses most.
    """

    float_layers: int
    clean: float
    adversarial: float


class Evaluator:
    """
    Score graphs on clean images, and on the same images attacked on the PyTorch model.

    Parameters
    ----------
    samples : sequence of Sample
    adversarial : sequence of (1, H, W, 3) uint8
        One for each sample.
    classes : int
    attack : dict
        The attack that made the adversarial images.
    reference : bytes
        The fp32 graph.
    open_fp32 : callable, optional
        Opens the fp32 graph.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        adversarial: Sequence[Images],
        *,
        classes: int,
        attack: Mapping[str, Any],
        reference: bytes,
        open_fp32: Open = OrtGraph,
    ) -> None:
        self._samples, self._classes, self._attack = samples, classes, dict(attack)
        self._images = ([sample.image for sample in samples], adversarial)
        self._fp32 = (reference, open_fp32)
        self._reference = self.score(reference, open_fp32)

    def score(self, content: bytes, opens: Open) -> tuple[float, float]:
        """Return clean and adversarial mIoU, in points."""
        return self._points(self._labels(content, opens))

    def drop(self, forms: Sequence[tuple[bytes, Open]]) -> AccuracyDrop:
        """Return the points lost against the fp32 graph, by the form that loses most; each form comes with its opener."""
        scores = [self.score(content, opens) for content, opens in forms]
        clean, adversarial = (
            reference - min(forms) for reference, forms in zip(self._reference, zip(*scores, strict=True), strict=True)
        )
        return AccuracyDrop(clean=clean, adversarial=adversarial, images=len(self._samples), attack=self._attack)

    def compare(self, content: bytes, opens: Open) -> tuple[AccuracyDrop, EqualLabels]:
        """Return the points that a graph loses against the fp32 graph, and the shares of pixels that both label alike."""
        found = self._labels(content, opens)
        clean, adversarial = (a - b for a, b in zip(self._reference, self._points(found), strict=True))
        equal = [
            float(np.mean(np.concatenate([(a == b).ravel() for a, b in zip(labels, expected, strict=True)])))
            for labels, expected in zip(found, self._expected, strict=True)
        ]
        drop = AccuracyDrop(clean=clean, adversarial=adversarial, images=len(self._samples), attack=self._attack)
        return drop, EqualLabels(clean=equal[0], adversarial=equal[1])

    @cached_property
    def _expected(self) -> tuple[_Labels, _Labels]:
        return self._labels(*self._fp32)

    def _labels(self, content: bytes, opens: Open) -> tuple[_Labels, _Labels]:
        graph = opens(content)
        try:
            clean, adversarial = ([graph.run(image).labels for image in images] for images in self._images)
        finally:
            graph.close()
        return clean, adversarial

    def _points(self, labels: tuple[_Labels, _Labels]) -> tuple[float, float]:
        clean, adversarial = (
            [confusion_counts(sample.labels, found, self._classes) for sample, found in zip(self._samples, each, strict=True)]
            for each in labels
        )
        return 100 * miou(sum(clean[1:], start=clean[0])), 100 * miou(sum(adversarial[1:], start=adversarial[0]))


def fall_back(
    worst_first: Sequence[str], drop_of: Callable[[Sequence[str]], AccuracyDrop], *, max_drop: float
) -> tuple[tuple[str, ...], AccuracyDrop, tuple[Trial, ...]]:
    """
    Leave as few of the worst layers in float as hold a limit.

    First none, then 1, 2, 4, ... of them are tried, then numbers between the last two. Two thirds of all layers stay int8:
    with fewer most of the network would compute in float, and no runtime would say that it is an int8 engine.

    Parameters
    ----------
    worst_first : sequence of str
        All layers that can compute in int8.
    drop_of : callable
        Measures the cost of int8 with the given layers in float.
    max_drop : float
        Points of mIoU that may be lost, of clean and of adversarial mIoU each.

    Returns
    -------
    float_layers : tuple of str
    drop : AccuracyDrop
        The cost with these layers.
    trials : tuple of Trial
        All trials, in their order.

    Raises
    ------
    ExportError
        Where the limit does not hold with a third of the layers in float.
    """
    trials: list[Trial] = []
    drops: dict[int, AccuracyDrop] = {}

    def holds(number: int) -> bool:
        drops[number] = drop = drop_of(worst_first[:number])
        trials.append(Trial(number, drop.clean, drop.adversarial))
        return max(drop.clean, drop.adversarial) <= max_drop

    enough = few(len(worst_first) // 3, holds)
    if enough is None:
        best = min(trials, key=lambda trial: max(trial.clean, trial.adversarial))
        raise ExportError(
            f"int8 loses at least {best.clean:.2f} points of clean and {best.adversarial:.2f} of adversarial mIoU, with "
            f"{best.float_layers} of {len(worst_first)} layers in float; {max_drop:g} are allowed: use the other "
            "--calibration, a larger --max-drop or --precision fp32"
        )
    return tuple(worst_first[:enough]), drops[enough], tuple(trials)


def few(most: int, holds: Callable[[int], bool]) -> int | None:
    """
    Find a small number that holds, from 0 to `most`; None where none was found.

    0, 1, 2, 4, ... are tried, then numbers between the last two: the smallest is found where larger ones are never worse.
    """
    too_few, enough = -1, 0
    while not holds(enough):
        if enough >= most:
            return None
        too_few, enough = enough, min(max(1, 2 * enough), most)
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        if holds(middle):
            enough = middle
        else:
            too_few = middle
    return enough
