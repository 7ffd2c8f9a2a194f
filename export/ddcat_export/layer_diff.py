"""Compare each layer of a graph with the same layer in PyTorch, to find where they begin to differ."""

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
import torch
from torch import Tensor, nn

from ddcat.engines.onnxruntime import run_once
from ddcat_export.fuse_batch_norm import fold_batch_norms
from ddcat_export.graph_checks import LOGITS
from ddcat_train.networks import Segmenter
from ddcat_train.pixels import to_planes

__all__ = ["Layer", "compare_layers", "first_different"]

_PREFIX = "segmenter."  # of the names of layers in the graph


class Layer(NamedTuple):
    """
    A layer of the graph, compared with PyTorch.

    Attributes
    ----------
    name : str
        Path of the module; "logits" for the result of all layers.
    shape : tuple of int
        Shape of its output in PyTorch.
    error : float
        The largest difference, in standard deviations of its output in PyTorch; infinite where shapes differ.
    """

    name: str
    shape: tuple[int, ...]
    error: float


def compare_layers(content: bytes, segmenter: Segmenter, images: npt.NDArray[np.uint8]) -> tuple[Layer, ...]:
    """
    Run a graph and its network on the same images, and compare the outputs of each layer.

    Parameters
    ----------
    content : bytes
        A graph of `build_graph`, in fp32 or cast to fp16.
    segmenter : Segmenter
        On the CPU, in eval() mode. Its batch norms are folded first, as they are in the graph.
    images : (N, H, W, 3) uint8

    Returns
    -------
    tuple of Layer
        The normalisation and the layers with parameters, in the order of the graph.

    Raises
    ------
    EngineError
        Where ONNX Runtime does not run the graph.
    """
    model = onnx.load_model_from_string(content)
    last: dict[str, str] = {}  # the last tensor of each layer
    for node in model.graph.node:
        layer, _, operation = node.name.rpartition("/")
        if layer.startswith(_PREFIX) and not operation.startswith("cast"):
            last[layer.removeprefix(_PREFIX)] = node.output[0]
    reference = _layers_of(segmenter, images, set(last))
    last = {name: tensor for name, tensor in last.items() if name in reference} | {LOGITS: LOGITS}
    stated = {output.name for output in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=tensor) for tensor in last.values() if tensor not in stated)
    outputs = run_once(model.SerializeToString(), images)
    return tuple(
        Layer(name, tuple(reference[name].shape), _error(outputs[tensor], reference[name].numpy()))
        for name, tensor in last.items()
    )


def first_different(layers: tuple[Layer, ...], tolerance: float) -> Layer | None:
    """Return the first layer whose error is above the tolerance, or not a number."""
    return next((layer for layer in layers if not layer.error <= tolerance), None)


def _layers_of(segmenter: Segmenter, images: npt.NDArray[np.uint8], names: set[str]) -> dict[str, Tensor]:
    folded = fold_batch_norms(segmenter)
    given: dict[str, Tensor] = {}

    def note(name: str) -> "torch.utils.hooks.RemovableHandle":
        def hook(module: nn.Module, inputs: object, output: object) -> None:
            if isinstance(output, Tensor):
                given[name] = output.clone()  # before what follows computes in place

        return folded.get_submodule(name).register_forward_hook(hook)

    handles = [note(name) for name, module in folded.named_modules() if name in names and not list(module.children())]
    try:
        planes = to_planes(images)
        with torch.inference_mode():
            given[LOGITS] = folded.low_resolution_logits("main", folded.features(planes))
    finally:
        for handle in handles:
            handle.remove()
    return given


def _error(values: npt.NDArray[np.generic], reference: npt.NDArray[np.float32]) -> float:
    if values.shape != reference.shape:
        return math.inf
    return float(np.abs(values.astype(np.float32) - reference).max() / max(float(reference.std()), 1e-30))
