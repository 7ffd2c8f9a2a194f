"""
Cast graphs to fp16 and bf16, between the normalised image and the logits, all of it or without some nodes.

No runtime of a CPU rounds as a GPU does: ONNX Runtime computes fp16 in fp32 and never overflows, and has no bf16. `simulated`
writes the roundings of a cast graph into one of fp32, as pairs of casts, which every runtime computes as they stand.
"""

from collections.abc import Collection
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from ddcat.choices import Precision
from ddcat_export.errors import ExportError
from ddcat_export.graph_checks import COMPUTES, LOGITS, check_graph, set_constants, types_of
from ddcat_export.opsets import opset_of

__all__ = ["DTYPES", "cast_graph", "castable", "rounds", "simulated"]

DTYPES: dict[Precision, npt.DTypeLike] = {"fp16": np.float16, "bf16": ml_dtypes.bfloat16}

# They move values, or choose among them: what they give has the type's digits where what they are given has them.
_EXACT = {
    "Abs", "Clip", "Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "Identity", "Max", "MaxPool", "Min", "Neg", "Pad",
    "Relu", "Reshape", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze", "Where",
}  # fmt: skip


def castable(model: onnx.ModelProto) -> tuple[onnx.NodeProto, ...]:
    """Return the nodes that `cast_graph` casts: the first convolution, and what comes of it up to the logits."""
    types = types_of(model)
    maps: set[str] = set()  # what convolutions gave, and what came of that
    found = []
    for node in model.graph.node:
        if types.get(node.output[0]) == TensorProto.FLOAT and (node.op_type == "Conv" or maps.intersection(node.input)):
            found.append(node)
            maps.update(name for name in node.output if name != LOGITS)
    return tuple(found)


def rounds(node: onnx.NodeProto) -> bool:
    """Return True for a node that computes values with more digits than it is given, not for a Relu or a Concat."""
    return node.op_type not in _EXACT


def cast_graph(content: bytes, precision: Precision, *, fp32: Collection[str] = ()) -> bytes:
    """
    Cast a graph to fp16 or bf16, from its first convolution to its logits.

    Input, normalisation, the computation of pooling and upsampling matrices, the logits and everything after them stay fp32.
    Weights are rounded to nearest.

    Parameters
    ----------
    content : bytes
        A typed fp32 graph of `build_graph`.
    precision : "fp16" or "bf16"
    fp32 : collection of str
        Nodes that stay fp32, with casts where they meet others. Nodes that round nothing stay with them where all maps that
        they read do.

    Returns
    -------
    bytes
        The same for the same arguments; checked by `check_graph`.

    Raises
    ------
    ExportError
        Where a weight is too large for the type, or the graph has no such node.
    """
    model = onnx.load_model_from_string(content)
    nodes = castable(model)
    unknown = sorted(set(fp32) - {node.name for node in nodes})
    if unknown:
        raise ExportError(f"the graph has no node {unknown[0]} that could stay in fp32")
    writer = _Writer(model, precision, {node.output[0] for node in nodes}, set(fp32))
    for node in model.graph.node:
        writer.write(node)
    del model.graph.node[:]
    model.graph.node.extend(writer.nodes)
    set_constants(model.graph, [*model.graph.initializer, *writer.constants])
    check_graph(model, precision, opset_of(content), fp32=fp32)
    changed: bytes = model.SerializeToString(deterministic=True)
    return changed


class _Writer:
    """Writes the nodes of a graph anew, in the type or in fp32, with casts between."""

    def __init__(self, model: onnx.ModelProto, precision: Precision, region: set[str], fp32: set[str]) -> None:
        self.precision, self.region, self.fp32 = precision, region, fp32
        self.types = types_of(model)
        self.weights = {tensor.name: tensor for tensor in model.graph.initializer}
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.typed: set[str] = set()  # tensors that have the type, under the name that they had
        self.wide: set[str] = set()  # maps that stay fp32
        self.casts: dict[str, str] = {}  # tensors, and what they are called in the other type

    def write(self, node: onnx.NodeProto) -> None:
        if node.output[0] not in self.region:  # a node may have no name
            self.nodes.append(node)
            return
        maps = [name for name in node.input if name in self.typed or name in self.wide]
        if node.name in self.fp32 or (not rounds(node) and maps and self.wide.issuperset(maps)):
            node.input[:] = [self._cast(name, "fp32") if name in self.typed else name for name in node.input]
            self.wide.update(node.output)
            self.nodes.append(node)
            return
        node.input[:] = [self._in_type(name) for name in node.input]
        self.nodes.append(node)
        if LOGITS in node.output:
            node.output[:] = [f"{LOGITS}_{self.precision}"]
            self.nodes.append(helper.make_node("Cast", list(node.output), [LOGITS], f"{LOGITS}/fp32", to=TensorProto.FLOAT))
            return
        self.typed.update(name for name in node.output if self.types.get(name) == TensorProto.FLOAT)

    def _in_type(self, name: str) -> str:
        if name in self.typed or self.types.get(name) != TensorProto.FLOAT:  # the second: shapes and sizes
            return name
        if name not in self.weights:
            return self._cast(name, self.precision)
        if name not in self.casts:
            self.casts[name] = f"{name}_{self.precision}"
            self.constants.append(_rounded(self.weights[name], self.casts[name], self.precision))
        return self.casts[name]

    def _cast(self, name: str, precision: Precision) -> str:
        if name not in self.casts:
            self.casts[name] = f"{name}_{precision}"
            self.nodes.append(
                helper.make_node("Cast", [name], [self.casts[name]], f"{name}/{precision}", to=COMPUTES[precision])
            )
        return self.casts[name]


def _rounded(tensor: onnx.TensorProto, name: str, precision: Precision) -> onnx.TensorProto:
    values: npt.NDArray[Any] = numpy_helper.to_array(tensor)
    with np.errstate(over="ignore"):
        rounded = values.astype(DTYPES[precision])
    if not np.all(np.isfinite(rounded)):
        raise ExportError(f"{tensor.name} has a weight of {np.abs(values).max():.3g}, which {precision} cannot hold: use bf16")
    return numpy_helper.from_array(rounded, name)


def simulated(content: bytes) -> bytes:
    """
    Write a graph that computes in fp32 what a cast graph does, with each of its roundings as a pair of casts.

    Sums of products are rounded once, at their end, as the matrix units of GPUs and CPUs round them.

    Parameters
    ----------
    content : bytes
        A typed graph of `cast_graph`; any other comes back as it is.
    """
    model = onnx.load_model_from_string(content)
    types = types_of(model)
    narrow = next((kind for kind in types.values() if kind in (TensorProto.FLOAT16, TensorProto.BFLOAT16)), None)
    if narrow is None:
        return content
    for tensor in model.graph.initializer:
        if tensor.data_type == narrow:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
    nodes = list(model.graph.node)
    del model.graph.node[:], model.graph.value_info[:]
    for node in nodes:
        if not rounds(node) or types.get(node.output[0]) != narrow:
            model.graph.node.append(node)
            continue
        output, exact, short = node.output[0], f"{node.output[0]}_exact", f"{node.output[0]}_rounded"
        if node.op_type == "Cast":
            exact = node.input[0]
        else:
            node.output[0] = exact
            model.graph.node.append(node)
        model.graph.node.extend(
            [
                helper.make_node("Cast", [exact], [short], f"{node.name}_rounded", to=narrow),
                helper.make_node("Cast", [short], [output], f"{node.name}_widened", to=TensorProto.FLOAT),
            ]
        )
    wide: bytes = model.SerializeToString(deterministic=True)
    return wide
