"""A differentiable twin of an engine: its ONNX file, run by torch, so that white-box attacks see what the engine computes."""

from typing import NamedTuple

import onnx
import torch
from onnx import helper, numpy_helper
from torch import Tensor, nn

from ddcat.faults import first_line
from ddcat_bench.errors import BenchError
from ddcat_bench.gate.twin_nodes import NODES, Attributes, Node

__all__ = ["Twin"]


class _Step(NamedTuple):
    name: str
    operator: Node
    inputs: tuple[str, ...]
    attributes: Attributes
    output: str
    done: tuple[str, ...]  # values that nobody reads after it


class Twin(nn.Module):
    """
    A graph of `ddcat-export` as a network of torch.

    It computes what the file says, with the file's own scales: quantise steps round, and let gradients pass straight through
    within their range. Constants are computed once.

    Parameters
    ----------
    content : bytes
        An ONNX file, of any precision, with input `image` and output `labels`.

    Raises
    ------
    BenchError
        Naming the node that it does not know.
    """

    def __init__(self, content: bytes) -> None:
        super().__init__()
        model = onnx.load_model_from_string(content)
        tensors: dict[str, Tensor] = {}
        for tensor in model.graph.initializer:
            tensors[tensor.name] = _tensor(tensor)
        steps = []
        for node in model.graph.node:
            if node.op_type not in NODES or len(node.output) != 1 or node.domain:
                raise BenchError(
                    f"the differentiable executor does not know {node.op_type} at {node.name}: no ddcat-export of this version "
                    "writes it"
                )
            attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
            step = _Step(node.name, NODES[node.op_type], tuple(node.input), attributes, node.output[0], ())
            if all(name in tensors for name in step.inputs if name):
                tensors[step.output] = _run(step, tensors)  # a constant
            else:
                steps.append(step)
        self._scores = _scores(model.graph)
        self._steps = _without_waste(steps, self._scores)
        read = {name for step in self._steps for name in step.inputs}
        self._names = {name: f"constant_{place}" for place, name in enumerate(tensors) if name in read}
        for name, buffer in self._names.items():
            self.register_buffer(buffer, tensors[name])
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """
        Compute the logits that the engine chooses its labels by.

        Parameters
        ----------
        images : (N, 3, H, W) float32
            RGB in [0, 1]. They are not rounded to bytes.

        Returns
        -------
        (N, K, H, W) float32
        """
        values = {name: self.get_buffer(buffer) for name, buffer in self._names.items()}
        values["image"] = (images * 255).permute(0, 2, 3, 1)  # the graph divides again
        for step in self._steps:
            values[step.output] = _run(step, values)
            for name in step.done:
                del values[name]
        scores = values[self._scores]
        return scores.reshape(len(images), -1, images.shape[2], images.shape[3])


def _tensor(tensor: onnx.TensorProto) -> Tensor:
    if tensor.data_type == onnx.TensorProto.BFLOAT16:  # numpy has no such type, torch takes none of another library
        return torch.from_numpy(numpy_helper.to_array(tensor).astype("float32")).to(torch.bfloat16)
    return torch.from_numpy(numpy_helper.to_array(tensor).copy())


def _run(step: _Step, values: dict[str, Tensor]) -> Tensor:
    try:
        return step.operator([values[name] if name else None for name in step.inputs], step.attributes)
    except (RuntimeError, IndexError, KeyError, TypeError) as cause:
        raise BenchError(f"the differentiable executor failed at {step.name}: {first_line(cause)}") from cause


def _scores(graph: onnx.GraphProto) -> str:
    """Name what the labels are the argmax of, over the classes of every pixel."""
    makers = {node.output[0]: node for node in graph.node}
    name = "labels"
    while name in makers:
        node = makers[name]
        name = node.input[0]
        if node.op_type == "ArgMax":
            return str(name)
    raise BenchError("the graph chooses no labels by argmax: it is none of ddcat-export")


def _without_waste(steps: list[_Step], wanted: str) -> tuple[_Step, ...]:
    """Keep the steps that `wanted` needs, and let each drop what is not read any more."""
    needed, kept = {wanted}, []
    for step in reversed(steps):
        if step.output in needed:
            last = {name for name in step.inputs if name and name not in needed}
            needed |= last
            kept.append(step._replace(done=tuple(name for name in last if name != "image")))
    made = {step.output for step in kept}
    return tuple(step._replace(done=tuple(name for name in step.done if name in made)) for step in reversed(kept))
