"""Cast graphs to fp16 and bf16, between the normalised image and the logits."""

from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from ddcat.manifest import Precision
from ddcat_export.errors import ExportError
from ddcat_export.graph_checks import COMPUTES, LOGITS, check_graph, types_of
from ddcat_export.opsets import opset_of

__all__ = ["cast_graph", "widened"]

_DTYPES: dict[Precision, npt.DTypeLike] = {"fp16": np.float16, "bf16": ml_dtypes.bfloat16}


def cast_graph(content: bytes, precision: Precision) -> bytes:
    """
    Cast a graph to fp16 or bf16, from its first convolution to its logits.

    Input, normalisation, the computation of pooling and upsampling matrices, the logits and everything after them stay fp32.
    Weights are rounded to nearest.

    Parameters
    ----------
    content : bytes
        A typed fp32 graph of `build_graph`.
    precision : "fp16" or "bf16"

    Returns
    -------
    bytes
        The same for the same arguments; checked by `check_graph`.

    Raises
    ------
    ExportError
        Where a weight is too large for the type.
    """
    model = onnx.load_model_from_string(content)
    types, weights = types_of(model), {tensor.name: tensor for tensor in model.graph.initializer}
    nodes: list[onnx.NodeProto] = []
    inside: dict[str, str] = {}  # tensors of the fp32 graph, and what they are called in the type
    constants: list[onnx.TensorProto] = []

    def in_type(name: str) -> str:
        if types.get(name) != TensorProto.FLOAT:
            return name  # shapes and sizes
        if name not in inside:
            inside[name] = f"{name}_{precision}"
            if name in weights:
                constants.append(_rounded(weights[name], inside[name], precision))
            else:
                nodes.append(helper.make_node("Cast", [name], [inside[name]], f"{name}/{precision}", to=COMPUTES[precision]))
        return inside[name]

    maps: set[str] = set()  # what convolutions gave, and what came of that
    for node in model.graph.node:
        if types.get(node.output[0]) == TensorProto.FLOAT and (node.op_type == "Conv" or maps.intersection(node.input)):
            node.input[:] = [in_type(name) for name in node.input]
            if LOGITS in node.output:
                node.output[:] = [f"{LOGITS}_{precision}"]
                nodes += [node, helper.make_node("Cast", list(node.output), [LOGITS], f"{LOGITS}/fp32", to=TensorProto.FLOAT)]
                continue
            maps.update(node.output)
            inside |= {name: name for name in node.output}
        nodes.append(node)
    used = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in (*model.graph.initializer, *constants) if tensor.name in used]
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(kept)
    check_graph(model, precision, opset_of(content))
    changed: bytes = model.SerializeToString(deterministic=True)
    return changed


def _rounded(tensor: onnx.TensorProto, name: str, precision: Precision) -> onnx.TensorProto:
    values: npt.NDArray[Any] = numpy_helper.to_array(tensor)
    with np.errstate(over="ignore"):
        rounded = values.astype(_DTYPES[precision])
    if not np.all(np.isfinite(rounded)):
        raise ExportError(f"{tensor.name} has a weight of {np.abs(values).max():.3g}, which {precision} cannot hold: bf16 can")
    return numpy_helper.from_array(rounded, name)


def widened(content: bytes) -> bytes | None:
    """
    Return a bf16 graph with fp32 in the place of bf16, the weights staying as they were rounded; None for other graphs.

    Parameters
    ----------
    content : bytes
        A typed graph of `cast_graph`.
    """
    model = onnx.load_model_from_string(content)
    rounded = [tensor for tensor in model.graph.initializer if tensor.data_type == TensorProto.BFLOAT16]
    if not rounded:
        return None
    for tensor in rounded:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
    for node in model.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.i == TensorProto.BFLOAT16:
                attribute.i = TensorProto.FLOAT
    del model.graph.value_info[:]
    wide: bytes = model.SerializeToString(deterministic=True)
    return wide
