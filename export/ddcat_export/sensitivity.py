"""Measure how far the rounding of each layer or node moves the logits, on clean and on attacked images."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ddcat.engines.base import Images
from ddcat.engines.onnxruntime import OrtGraph
from ddcat_export.errors import ExportError
from ddcat_export.onnx_export import with_logits
from ddcat_export.progress import Progress, with_progress
from ddcat_export.quantise import layers_of, quantise

__all__ = ["LayerError", "measure_each", "measure_sensitivity"]

_Logits = list[npt.NDArray[np.float32]]


class LayerError(NamedTuple):
    """
    The cost of one layer in int8, or of one node in fp16 or bf16.

    Attributes
    ----------
    layer : str
    clean, adversarial : float
        Root of the mean square by which the logits change when this layer alone is rounded, in standard deviations of the fp32
        graph's logits, on clean and on attacked images.
    """

    layer: str
    clean: float
    adversarial: float


def measure_sensitivity(
    graph: bytes,
    ranges: Mapping[str, float],
    *,
    clean: Sequence[Images],
    adversarial: Sequence[Images],
    progress: Progress = lambda stage: None,
) -> tuple[LayerError, ...]:
    """
    Measure every layer alone in int8, with ONNX Runtime.

    Parameters
    ----------
    graph : bytes
        A typed fp32 graph of `build_graph`.
    ranges : mapping of str to float
        From `measure_ranges`.
    clean, adversarial : sequence of (N, H, W, 3) uint8
    progress : callable, optional
        Called with the current stage.

    Returns
    -------
    tuple of LayerError
        The worst first, by the larger of its two errors.
    """
    layers = layers_of(graph)

    def alone(layer: str) -> bytes:
        return quantise(graph, ranges, float_layers=[other for other in layers if other != layer])

    return measure_each(graph, layers, alone, clean=clean, adversarial=adversarial, progress=progress)


def measure_each(
    graph: bytes,
    layers: Sequence[str],
    alone: Callable[[str], bytes],
    *,
    clean: Sequence[Images],
    adversarial: Sequence[Images],
    progress: Progress = lambda stage: None,
) -> tuple[LayerError, ...]:
    """
    Compare the logits of graphs in which one layer is rounded with those of the fp32 graph, in ONNX Runtime.

    Parameters
    ----------
    graph : bytes
        A typed fp32 graph of `build_graph`.
    layers : sequence of str
    alone : callable
        Given a layer, returns the graph in which it alone is rounded.
    clean, adversarial, progress
        As for `measure_sensitivity`.

    Returns
    -------
    tuple of LayerError
        The worst first, by the larger of its two errors.
    """
    references = [_logits(graph, images) for images in (clean, adversarial)]
    measured = []
    for layer in with_progress(layers, "measuring the sensitivity of layers", progress):
        content = alone(layer)
        errors = [
            _error(_logits(content, images), reference)
            for images, reference in zip((clean, adversarial), references, strict=True)
        ]
        measured.append(LayerError(layer, *errors))
    return tuple(sorted(measured, key=lambda one: (-max(one.clean, one.adversarial), one.layer)))


def _logits(content: bytes, images: Sequence[Images]) -> _Logits:
    with OrtGraph(with_logits(content)) as opened:
        given = [opened.run(batch).logits for batch in images]
    return [logits for logits in given if logits is not None]


def _error(quantised: _Logits, reference: _Logits) -> float:
    differences = np.concatenate([(a - b).ravel() for a, b in zip(quantised, reference, strict=True)])
    deviation = np.concatenate([logits.ravel() for logits in reference]).std()
    if not deviation > 0:
        raise ExportError("the network computes the same logits at every pixel: its sensitivity cannot be measured")
    return float(np.sqrt(np.mean(differences.astype(np.float64) ** 2)) / deviation)
