"""Choose the layers that stay in float, so that int8 holds a limit of lost mIoU on clean and on attacked images."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from ddcat.engines.base import Images, LoadedGraph
from ddcat.manifest import AccuracyDrop
from ddcat.metrics import confusion_counts, miou
from ddcat_export.data import Sample
from ddcat_export.errors import ExportError

__all__ = ["Evaluator", "Open", "Trial", "fall_back"]

Open = Callable[[bytes], LoadedGraph]


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
    open_fp32 : callable
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
        open_fp32: Open,
    ) -> None:
        self._samples, self._classes, self._attack = samples, classes, dict(attack)
        self._images = ([sample.image for sample in samples], adversarial)
        self._reference = self.score(reference, open_fp32)

    def score(self, content: bytes, opens: Open) -> tuple[float, float]:
        """Return clean and adversarial mIoU, in points."""
        graph = opens(content)
        try:
            clean, adversarial = (self._score(graph, images) for images in self._images)
        finally:
            graph.close()
        return clean, adversarial

    def drop(self, forms: Sequence[tuple[bytes, Open]]) -> AccuracyDrop:
        """Return the points lost against the fp32 graph, by the form that loses most; each form comes with its opener."""
        scores = [self.score(content, opens) for content, opens in forms]
        clean, adversarial = (
            reference - min(forms) for reference, forms in zip(self._reference, zip(*scores, strict=True), strict=True)
        )
        return AccuracyDrop(clean=clean, adversarial=adversarial, images=len(self._samples), attack=self._attack)

    def _score(self, graph: LoadedGraph, images: Sequence[Images]) -> float:
        counts = [
            confusion_counts(sample.labels, graph.run(image).labels, self._classes)
            for sample, image in zip(self._samples, images, strict=True)
        ]
        return 100 * miou(sum(counts[1:], start=counts[0]))


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

    most = len(worst_first) // 3
    too_few, enough = -1, 0
    while not holds(enough):
        if enough >= most:
            best = min(trials, key=lambda trial: max(trial.clean, trial.adversarial))
            raise ExportError(
                f"int8 loses {best.clean:.2f} points of clean and {best.adversarial:.2f} of adversarial mIoU with "
                f"{best.float_layers} of {len(worst_first)} layers in float, the best that was found, where {max_drop:g} are "
                "allowed: use --calibration of the other kind, another --max-drop or --precision fp32"
            )
        too_few, enough = enough, min(max(1, 2 * enough), most)
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        if holds(middle):
            enough = middle
        else:
            too_few = middle
    return tuple(worst_first[:enough]), drops[enough], tuple(trials)
