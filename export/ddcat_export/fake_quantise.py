"""The int8 form of a graph with float weights behind the rounding, so that they can be trained through it."""

from collections.abc import Collection, Mapping
from typing import Any

import onnx
import torch
from onnx import TensorProto, numpy_helper
from torch import Tensor, nn

from ddcat_export.errors import ExportError
from ddcat_export.fuse_batch_norm import fold_batch_norms
from ddcat_export.quantise import layers_of, normalise_matmuls, quantise
from ddcat_export.twin.twin import Twin
from ddcat_train.networks import Segmenter

__all__ = ["FakeQuantised", "round_weight", "trained_tensors"]

_LEVELS = 127  # of a weight on either side of 0


class FakeQuantised(nn.Module):
    """
    A typed fp32 graph as the int8 graph that `quantise` makes of it, whose float weights are parameters.

    It is the twin of that int8 graph. Activations are rounded by their calibrated ranges, which stay; weights are rounded anew
    in every forward, by the scales that `quantise` would choose for them. Gradients pass straight through: unchanged for a
    weight, since its scale leaves nothing out; unchanged within the range of an activation, and 0 beyond.

    A parameter is a change of its weight, in steps of int8: what an optimiser moves has the same unit in every channel of
    every network. Of values that stay float the step is a 127th of the largest one.

    Parameters
    ----------
    graph : bytes
        From `build_graph`.
    ranges : mapping of str to float
        From `measure_ranges`.
    trained : collection of str
        Constants of the graph to train: see `trained_tensors`.
    unsigned : bool
        Take the form for runtimes of a CPU: see `quantise`.

    Raises
    ------
    ExportError
        Where the graph holds what the twin does not support, or nothing can be trained.
    """

    def __init__(self, graph: bytes, ranges: Mapping[str, float], *, trained: Collection[str], unsigned: bool) -> None:
        super().__init__()
        self._graph = normalise_matmuls(graph)
        self._twin = Twin(quantise(self._graph, ranges, unsigned=unsigned))
        self._names: list[str] = []  # of what is trained
        self.changes = nn.ParameterList()
        for tensor in onnx.load_model_from_string(self._graph).graph.initializer:
            read = not self._twin.constants.isdisjoint((tensor.name, _rounded(tensor.name)))
            if read and tensor.name in trained and tensor.data_type == TensorProto.FLOAT:
                weight = torch.from_numpy(numpy_helper.to_array(tensor).copy())
                self.register_buffer(f"before_{len(self._names)}", weight)
                self.register_buffer(f"step_{len(self._names)}", _steps(weight, of_zeros=1 / _LEVELS))
                self.changes.append(nn.Parameter(torch.zeros_like(weight)))
                self._names.append(tensor.name)
        if not self._names:
            raise ExportError("the graph has no weight that could be trained for int8: use another precision")

    def forward(self, images: Tensor) -> Tensor:
        """Compute the logits (N, K, H, W) of images (N, 3, H, W) in [0, 1], as `Twin` does."""
        constants = {}
        for name, weight in zip(self._names, self._weights(), strict=True):
            if name in self._twin.constants:
                constants[name] = weight
            if _rounded(name) in self._twin.constants:
                constants[_rounded(name)] = round_weight(weight)
        logits: Tensor = self._twin(images, constants)
        return logits

    def weights(self) -> dict[str, Tensor]:
        """Return the float weights as they are now, by their names in the graph, on the CPU."""
        return {name: weight.detach().cpu() for name, weight in zip(self._names, self._weights(), strict=True)}

    def graph(self) -> bytes:
        """Return the fp32 graph with these weights: the same nodes and, but for what is trained, the same constants."""
        model, weights = onnx.load_model_from_string(self._graph), self.weights()
        for tensor in model.graph.initializer:
            if tensor.name in weights:
                tensor.CopyFrom(numpy_helper.from_array(weights[tensor.name].contiguous().numpy(), tensor.name))
        content: bytes = model.SerializeToString(deterministic=True)
        return content

    def _weights(self) -> list[Tensor]:
        return [
            self.get_buffer(f"before_{place}") + self.get_buffer(f"step_{place}") * change
            for place, change in enumerate(self.changes)
        ]


def trained_tensors(graph: bytes, segmenter: Segmenter) -> frozenset[str]:
    """
    Name the constants of a graph to train: the weights of its int8 layers, and what has the name of a parameter.

    Parameters
    ----------
    graph : bytes
        From `build_graph` for the segmenter.
    segmenter : Segmenter
    """
    model = onnx.load_model_from_string(normalise_matmuls(graph))
    layers = set(layers_of(graph))
    weights = {node.input[1] for node in model.graph.node if node.name in layers}
    return frozenset(weights | {f"segmenter.{name}" for name, _ in fold_batch_norms(segmenter).named_parameters()})


def round_weight(weight: Tensor) -> Tensor:
    """
    Round a weight to the values that its int8 form stands for; its gradient is that of the result.

    Parameters
    ----------
    weight : (O, I, h, w) or (I, O) float32
        Of a convolution, or the second factor of a product: one scale for each output channel.
    """
    rounded: Tensor = _Round.apply(weight)  # type: ignore[no-untyped-call]
    return rounded


class _Round(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> Tensor:
        scales = _steps(weight)
        return torch.round(weight / scales) * scales  # half to even, as in numpy

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


def _steps(weight: Tensor, *, of_zeros: float = 1.0) -> Tensor:
    """Return the step of each output channel of a weight, one for other values; `of_zeros` where all of them are 0."""
    axis = {4: 0, 2: 1}.get(weight.ndim)
    others = [place for place in range(weight.ndim) if place != axis]
    largest = weight.detach().abs().amax(others, keepdim=True)
    steps = largest / torch.full_like(largest, _LEVELS)  # a GPU multiplies by the inverse of a number
    return torch.where(steps == 0, of_zeros, steps)


def _rounded(name: str) -> str:
    return f"{name}_rounded"  # as `quantise` calls what stands for a weight
