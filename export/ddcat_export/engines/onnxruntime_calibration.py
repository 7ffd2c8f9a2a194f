"""Measure the magnitudes of a graph's activations with ONNX Runtime's calibrator."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
from onnxruntime.quantization.calibrate import (  # type: ignore[import-untyped]
    CalibrationDataReader,
    MinMaxCalibrater,
)

from ddcat.temporary import temporary_directory

__all__ = ["measure_magnitudes"]

_Images = npt.NDArray[np.uint8]


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, batches: Iterable[_Images]) -> None:
        self.batches: Iterator[_Images] = iter(batches)

    def get_next(self) -> dict[str, _Images] | None:
        batch = next(self.batches, None)
        return None if batch is None else {"image": batch}


def measure_magnitudes(graph: bytes, operators: Sequence[str], batches: Iterable[_Images]) -> dict[str, float]:
    """
    Measure the largest magnitude of tensors over all batches.

    Parameters
    ----------
    graph : bytes
        An ONNX file in fp32.
    operators : sequence of str
        Inputs and outputs of these nodes are measured.
    batches : iterable of (N, H, W, 3) uint8

    Returns
    -------
    dict of str to float
        By tensor.
    """
    with temporary_directory() as folder:
        file = folder / "graph.onnx"
        file.write_bytes(graph)
        calibrater = MinMaxCalibrater(file, operators, str(folder / "augmented.onnx"), symmetric=True)
        calibrater.augment_graph()
        calibrater.create_inference_session()
        calibrater.collect_data(_Reader(batches))
        measured = calibrater.compute_data()
    return {name: float(np.max(ranges.range_value[1])) for name, ranges in measured.items()}
