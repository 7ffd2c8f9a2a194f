"""Calibration of both models on clean images: whether they are right as often as they are sure."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch

from ddcat.preprocess import restore
from ddcat.reliability import BINS, calibration_error, count_reliability
from ddcat_bench.attack.attacks import AttackBatch
from ddcat_bench.gate.pool import Targets
from ddcat_bench.gate.results import Calibration, CalibrationBin, CalibrationRow
from ddcat_train.pixels import to_8_bit, to_pixels

__all__ = ["Diagram", "calibration_table", "draw_calibration", "measure_calibration"]

_LEFT, _TOP, _SIDE = 48, 8, 160  # of the diagram, in its own units


def measure_calibration(targets: Targets, batches: Iterable[AttackBatch], *, temperature: float = 1.0) -> Calibration:
    """
    Measure the calibration of the PyTorch model and of the engine, on images as they are.

    The logits of the PyTorch model are divided by the temperature of the engine's graph, too.
    """
    counts, engine_tells = np.zeros((2, BINS, 3)), True
    for victims in batches:
        received = to_8_bit(victims.images, victims.images)
        with torch.no_grad():
            top = (targets.reference(received.float() / 255) / temperature).softmax(1).max(1)
        outputs = targets.engine.infer(to_pixels(received))
        engine_tells &= outputs.confidence is not None
        answers = [(top.indices.to(torch.uint8).numpy(), top.values.numpy()), (outputs.labels, outputs.confidence)]
        for place, truth in enumerate(victims.labels.numpy() if victims.full_labels is None else victims.full_labels):
            size = (truth.shape[0], truth.shape[1])
            for model, (labels, confidence) in enumerate(answers):
                if confidence is not None:
                    counts[model] += count_reliability(truth, restore(labels[place], size), restore(confidence[place], size))
    return Calibration(reference=_row(counts[0]), engine=_row(counts[1]) if engine_tells else None)


def _row(counts: np.ndarray) -> CalibrationRow:
    total = counts[:, 0].sum()
    bins = [
        CalibrationBin(share=pixels / total, accuracy=right / pixels, confidence=min(1.0, sure / pixels))
        for pixels, right, sure in counts.tolist()
        if pixels
    ]
    return CalibrationRow(error=calibration_error(counts), bins=tuple(bins))


class Diagram(NamedTuple):
    """A reliability diagram: accuracy over confidence, in its own units, each point with a radius for its share of pixels."""

    name: str
    points: list[tuple[float, float, float]]


def draw_calibration(found: Calibration | None) -> list[Diagram]:
    """Draw a diagram for each model whose confidence is known."""
    diagrams = []
    for name, row in _rows(found):
        points = [(_LEFT + _SIDE * b.confidence, _TOP + _SIDE * (1 - b.accuracy), 1.5 + 6 * b.share**0.5) for b in row.bins]
        diagrams.append(Diagram(name, [(round(x, 1), round(y, 1), round(radius, 1)) for x, y, radius in points]))
    return diagrams


def calibration_table(found: Calibration | None) -> tuple[list[str], list[list[str]]]:
    """Return heads, and a row for each model whose confidence is known."""
    rows = [
        [
            name,
            f"{row.error:.4f}",
            f"{sum(bin_.share * bin_.confidence for bin_ in row.bins):.2%}",
            f"{sum(bin_.share * bin_.accuracy for bin_ in row.bins):.2%}",
        ]
        for name, row in _rows(found)
    ]
    return ["confidence of", "calibration error", "mean confidence", "accuracy"], rows


def _rows(found: Calibration | None) -> list[tuple[str, CalibrationRow]]:
    rows = [] if found is None else [("PyTorch model", found.reference), ("engine", found.engine)]
    return [(name, row) for name, row in rows if row is not None]
