"""The temperature of a bundle's confidence: fitted on the validation split, and a constant of the graph."""

import math

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import helper, numpy_helper

from ddcat.classes import IGNORE_INDEX
from ddcat.confidence import CONFIDENCE_OUTPUT, Temperature
from ddcat_export.data import ExportData
from ddcat_export.errors import ExportError
from ddcat_train.networks import Segmenter
from ddcat_train.pixels import to_planes

__all__ = ["best_temperature", "fit_temperature", "with_temperature"]

_NAME = "temperature"
_COLDEST, _HOTTEST = 0.05, 20.0
_PRECISION = 1e-5  # relative
_VALUES = 2**25  # logits that are kept: 128 MiB


def fit_temperature(data: ExportData, segmenter: Segmenter) -> Temperature:
    """
    Fit the temperature of a network on the validation split.

    All pixels with a label count, or as many of them as fit into 128 MiB, drawn with a fixed seed.

    Parameters
    ----------
    data : ExportData
    segmenter : Segmenter
        On the CPU, in eval() mode.

    Raises
    ------
    ExportError
        Where the data is missing, has no labels, or no temperature fits.
    DataError
    """
    dataset = data.val_dataset()
    pixels = sum(height * width for height, width in map(dataset.size, range(len(dataset))))
    share = min(1.0, _VALUES / (pixels * segmenter.classes))
    random = np.random.default_rng(0)
    logits, labels = [], []
    for sample in data.whole_val():
        with torch.no_grad():
            values = segmenter(to_planes(sample.image))[0].flatten(1).T.numpy()  # (H W, K)
        known = sample.labels.ravel() != IGNORE_INDEX
        if share < 1:
            known &= random.random(known.size) < share
        logits.append(values[known])
        labels.append(sample.labels.ravel()[known])
    return Temperature(value=best_temperature(np.concatenate(logits), np.concatenate(labels)), images=len(dataset))


def best_temperature(logits: npt.NDArray[np.float32], labels: npt.NDArray[np.integer]) -> float:
    """
    Return the temperature T at which softmax(logits / T) gives the labels the largest likelihood.

    The mean log-likelihood is concave in 1 / T, so its derivative has one zero, which is found by bisection.

    Parameters
    ----------
    logits : (N, K) float32
    labels : (N,) integer
        In 0..K-1.

    Returns
    -------
    float
        In 0.05..20, exact to five digits.

    Raises
    ------
    ExportError
        Where there are no labels, or the likelihood still grows at one of the ends.
    """
    if not len(labels):
        raise ExportError("--temperature fit: no pixel of the validation split has a label: give a number instead")
    below = logits - logits.max(1, keepdims=True)
    mean = float(np.take_along_axis(below, labels.astype(np.int64)[:, None], 1).mean(dtype=np.float64))

    def slope(temperature: float) -> float:
        """Derivative of the log-likelihood by 1 / T: the logit of the label minus the one that is expected."""
        shares = np.exp(below / np.float32(temperature))
        return mean - float(((shares * below).sum(1) / shares.sum(1)).mean(dtype=np.float64))

    low, high = _COLDEST, _HOTTEST
    if slope(low) >= 0 or slope(high) <= 0:
        end = low if slope(low) >= 0 else high
        raise ExportError(
            f"--temperature fit: the best temperature for the validation split is beyond {end:g}: give a number instead"
        )
    while high / low > 1 + _PRECISION:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return float(f"{math.sqrt(low * high):.5g}")


def with_temperature(content: bytes, temperature: float) -> bytes:
    """
    Divide the logits by a temperature on their way to the confidence, and nowhere else.

    Parameters
    ----------
    content : bytes
        A graph of `ddcat_export.onnx_export.build_graph` or `ddcat_export.contract.contract_graph` that gives the confidence.
    temperature : float

    Returns
    -------
    bytes
        The same graph with one more node and one more constant.
    """
    model = onnx.load_model_from_string(content)
    makers = {name: node for node in model.graph.node for name in node.output}
    node = makers[CONFIDENCE_OUTPUT]
    while node.op_type != "Exp":  # of 1 / sum(exp(logits - highest))
        node = makers[node.input[0]]
    divided = helper.make_node("Div", [node.input[0], _NAME], [f"{_NAME}/divided"], f"{_NAME}/div")
    model.graph.node.insert(list(model.graph.node).index(node), divided)
    node.input[0] = divided.output[0]
    model.graph.initializer.append(numpy_helper.from_array(np.array(temperature, np.float32), _NAME))
    changed: bytes = model.SerializeToString(deterministic=True)
    return changed
