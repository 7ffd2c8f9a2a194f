"""Compare a graph with its network on images of many shapes."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from ddcat.engines.base import Outputs
from ddcat.engines.errors import EngineError
from ddcat.engines.onnxruntime import OrtGraph
from ddcat.manifest import Sizes
from ddcat_export.errors import ExportError
from ddcat_export.layer_diff import compare_layers, first_different
from ddcat_export.onnx_export import with_logits
from ddcat_train.networks import Segmenter
from ddcat_train.pixels import to_planes

__all__ = ["FP16_TOLERANCE", "LOGIT_TOLERANCE", "Parity", "Shape", "check_parity", "sample_images", "shapes_of"]

LOGIT_TOLERANCE = 1e-4  # of the standard deviation of PyTorch's logits
FP16_TOLERANCE = 2e-2
_LEAST_SCALE = 1e-30  # logits that are all equal have no deviation to measure by

Shape = tuple[int, int, int]  # batch, height, width

# The smallest, odd and even, flat and upright, one beyond a multiple of the stride, and none that was traced.
_FREE: tuple[Shape, ...] = ((1, 33, 33), (2, 33, 65), (1, 65, 34), (3, 40, 72), (2, 97, 129), (1, 50, 161), (1, 180, 240))
_BATCHES = (1, 2, 3)


@dataclass(frozen=True)
class Parity:
    """
    How near a graph is to PyTorch.

    Attributes
    ----------
    shapes : tuple of (batch, height, width)
        Shapes of the images.
    pixels, near_ties : int
        Pixels that were compared, and those whose labels differ because their two highest logits are equal but for rounding.
    logit_error : float
        The largest difference of a logit, in standard deviations of PyTorch's logits.
    """

    shapes: tuple[Shape, ...]
    pixels: int
    near_ties: int
    logit_error: float


def shapes_of(sizes: Sizes | None) -> tuple[Shape, ...]:
    """Return the shapes to compare on, for a graph of these sizes or of free ones (None)."""
    if sizes is None:
        return _FREE
    if len(sizes) == 1:
        return tuple((batch, *sizes[0]) for batch in _BATCHES)
    return (_FREE[0], *((1 + index % 2, *size) for index, size in enumerate(sizes)))


def sample_images(shape: Shape, seed: int, channels: int = 3) -> npt.NDArray[np.uint8]:
    """
    Draw images to compare on: noise in the even places of the batch, smooth waves of colour in the odd ones.

    Parameters
    ----------
    shape : (batch, height, width)
    seed : int
        Other seeds give other images, and of a batch of one an odd seed gives the waves.

    Returns
    -------
    (N, H, W, C) uint8
    """
    count, height, width = shape
    random = np.random.default_rng([seed, *shape])
    images = random.integers(0, 256, (count, height, width, channels), np.uint8)
    rows, columns = np.arange(height)[:, None, None], np.arange(width)[None, :, None]
    for index in range((seed + 1) % 2, count, 2):
        waves, phase = random.uniform(-0.15, 0.15, (2, channels)), random.uniform(0, 2 * np.pi, channels)
        images[index] = 127.5 + 127 * np.sin(waves[0] * rows + waves[1] * columns + phase)  # (H, W, C)
    return images


def check_parity(
    content: bytes,
    segmenter: Segmenter,
    shapes: tuple[Shape, ...],
    *,
    tolerance: float = LOGIT_TOLERANCE,
    temperature: float = 1.0,
) -> Parity:
    """
    Compare a graph, run by ONNX Runtime, with the main branch of its network, run by PyTorch.

    Parameters
    ----------
    content : bytes
        A graph of `build_graph`. Logits that are not an output are read in a second session.
    segmenter : Segmenter
        On the CPU, in eval() mode.
    shapes : tuple of (batch, height, width)
    tolerance : float
        Tolerated error of a logit, in standard deviations of PyTorch's logits. Labels may differ where the two highest logits
        are nearer than twice that.
    temperature : float
        Of the confidence.

    Raises
    ------
    ExportError
        Naming the shape, where the graph fails, a logit is off by more than is tolerated, or a label differs that is no near
        tie; with the first layer that differs.
    """
    pixels = ties = 0
    worst = 0.0
    try:
        with OrtGraph(content) as served, OrtGraph(with_logits(content)) as inner:
            for shape in shapes:
                for seed in (0, 1):
                    images = sample_images(shape, seed, segmenter.bands)
                    try:
                        result = _compare(served, inner, segmenter, images, tolerance, temperature)
                    except _OtherValuesError as fault:
                        raise ExportError(f"{fault}; {_first(content, segmenter, images, tolerance)}") from fault
                    pixels, ties, worst = pixels + shape[0] * shape[1] * shape[2], ties + result[0], max(worst, result[1])
    except EngineError as cause:
        raise ExportError(f"the exported graph does not run: {cause}") from cause
    return Parity(shapes, pixels, ties, worst)


class _OtherValuesError(ExportError):
    """The graph runs, and computes something else."""


def _first(content: bytes, segmenter: Segmenter, images: npt.NDArray[np.uint8], tolerance: float) -> str:
    layer = first_different(compare_layers(content, segmenter, images), tolerance)
    if layer is None:
        return "no layer differs: the fault is in the nodes after the logits"
    return f"the first layer that differs is {layer.name}, by up to {layer.error:.2g} of the standard deviation of its values"


def _compare(
    served: OrtGraph,
    inner: OrtGraph,
    segmenter: Segmenter,
    images: npt.NDArray[np.uint8],
    tolerance: float,
    temperature: float,
) -> tuple[int, float]:
    where = "images of shape {}x{}x{}".format(*images.shape[:3])
    low, full = _reference(segmenter, images)  # (N, K, h, w), (N, K, H, W)
    scale = float(low.std())
    if not np.isfinite(scale):
        raise ExportError(f"the network itself computes logits that are not finite on {where}: use another checkpoint")
    outputs = served.run(images)
    stated = inner.run(images).logits if outputs.logits is None else outputs.logits
    _check_form(outputs, stated, images.shape[:3], low.shape, where)
    assert stated is not None  # for the type checker: `_check_form` refuses None

    error = float(np.abs(stated - low).max()) / max(scale, _LEAST_SCALE)
    highest = np.partition(full, -2, axis=1)[:, -2:]  # (N, 2, H, W): the second highest, the highest
    near = highest[:, 1] - highest[:, 0] < 2 * tolerance * scale
    differs = outputs.labels != full.argmax(1)
    wrong = differs & ~near
    if not error <= tolerance or wrong.any():  # not error <= ...: NaN is refused, too
        raise _OtherValuesError(
            f"the exported graph differs from the network: on {where} {100 * wrong.mean():.3g} % of the labels are not "
            f"PyTorch's, and the logits differ by up to {error:.2g} of their standard deviation, at most {tolerance:g} may"
        )
    if outputs.confidence is not None:
        _check_confidence(outputs.confidence, full / np.float32(temperature), 2 * tolerance * scale / temperature, where)
    return int(differs.sum()), error


def _check_confidence(
    confidence: npt.NDArray[np.float32], logits: npt.NDArray[np.float32], tolerated: float, where: str
) -> None:
    expected = torch.from_numpy(logits).softmax(1).amax(1).numpy()  # (N, H, W)
    # the logarithm of a probability moves by no more than twice what logits do
    if (
        confidence.dtype != np.float32
        or confidence.shape != expected.shape
        or not np.all(np.abs(confidence - expected) <= tolerated + 1e-5)
    ):
        raise ExportError(f"the exported graph differs from the network: on {where} its confidence is not that of its label")


def _reference(segmenter: Segmenter, images: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    planes = to_planes(images)
    with torch.inference_mode():
        features = segmenter.features(planes)
        return segmenter.low_resolution_logits("main", features).numpy(), segmenter.logits("main", features).numpy()


def _check_form(
    outputs: Outputs,
    logits: npt.NDArray[np.float32] | None,
    labels_shape: tuple[int, ...],
    logits_shape: tuple[int, ...],
    where: str,
) -> None:
    labels = outputs.labels
    form = None if logits is None else (labels.dtype, labels.shape, logits.dtype, logits.shape)
    expected = (np.dtype(np.uint8), labels_shape, np.dtype(np.float32), logits_shape)
    if form != expected:
        raise ExportError(f"the exported graph returns labels and logits {form} for {where}, expected {expected}")
