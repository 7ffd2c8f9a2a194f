"""Adapt a graph to the ONNX parser of TensorRT, and refuse what it would silently compute in other types."""

import onnx
from onnx import TensorProto

from ddcat.engines.errors import EngineError
from ddcat.engines.tensorrt import version8
from ddcat.engines.tensorrt.plan import version_of
from ddcat.error_text import first_line
from ddcat_export.opsets import lower

__all__ = ["adapt", "channels_of", "last_opset", "silent_changes"]

_LAST_OPSETS = (((10, 15), 24), ((10, 6), 22), ((10, 0), 20), ((8, 6), version8.LAST_OPSET))


def last_opset(version: str) -> int:
    """Return the newest opset that the parser of a TensorRT reads: that of the ONNX which it was built with."""
    return next((opset for since, opset in _LAST_OPSETS if version_of(version) >= since), 0)


def channels_of(content: bytes) -> int:
    """Return the number of channels of the images, (N, H, W, C), that a graph takes."""
    return int(onnx.load_model_from_string(content).graph.input[0].type.tensor_type.shape.dim[3].dim_value)


def adapt(content: bytes, title: str, opset: int, *, int8: bool) -> bytes:
    """
    Adapt a graph to a TensorRT, without changing what it computes.

    A graph of a newer opset is converted. A shape is taken of the float image instead of the uint8 one: TensorRT allows uint8
    for inputs and outputs alone.

    Parameters
    ----------
    content : bytes
        An ONNX file.
    title : str
        The TensorRT, for messages.
    opset : int
        The newest that its parser reads.
    int8 : bool
        The graph must quantise.

    Returns
    -------
    bytes
        The graph for the parser, which refuses by itself the nodes that it does not take.

    Raises
    ------
    EngineError
        Naming the first node that TensorRT would compute otherwise, and the reason.
    """
    model = _lower(onnx.load_model_from_string(content), title, opset)
    _shapes_of_floats(model)
    faults = silent_changes(model)
    if int8 and not any(node.op_type == "QuantizeLinear" for node in model.graph.node):
        faults.append("it has no QuantizeLinear, so nothing in it would be int8")
    if faults:
        raise EngineError(f"{title} does not accept the graph: {faults[0]}")
    fitted: bytes = model.SerializeToString(deterministic=True)
    return fitted


def silent_changes(model: onnx.ModelProto) -> list[str]:
    """
    List the nodes that the parser takes and computes in other types than the graph says.

    It reads uint8 with zero point 0 as int8, which ends at 127 instead of 255, and float64 as float32.

    Returns
    -------
    list of str
        The node, its fault, and the remedy.
    """
    inferred = onnx.shape_inference.infer_shapes(model).graph
    types = {v.name: v.type.tensor_type.elem_type for v in (*inferred.value_info, *inferred.input, *inferred.output)}
    types |= {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    faults = []
    for node in model.graph.node:
        where = f"{node.name or node.output[0]} ({node.op_type})"
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            held = types.get(node.output[0] if node.op_type == "QuantizeLinear" else node.input[0])
            if held == TensorProto.UINT8:
                faults.append(f"{where}: it quantises to uint8, which TensorRT reads as int8: use int8 with zero point 0")
        if TensorProto.DOUBLE in {types.get(name) for name in (*node.input, *node.output)}:
            faults.append(f"{where}: it computes in float64, which TensorRT reads as float32: use float32")
    return faults


def _lower(model: onnx.ModelProto, title: str, newest: int) -> onnx.ModelProto:
    domains = {entry.domain: entry.version for entry in model.opset_import}
    opset = domains.get("", 0)
    if set(domains) != {""}:
        raise EngineError(f"{title} supports only operators of ONNX itself, but the graph has some of {', '.join(domains)}")
    if opset <= newest:
        return model
    try:
        return lower(model, newest)
    except Exception as cause:  # its exceptions share no base
        reason = first_line(cause).rpartition("failed: ")[2]  # before it, a place in ONNX's source
        raise EngineError(
            f"{title} reads ONNX up to opset {newest}, and the graph of opset {opset} cannot be converted: {reason}"
        ) from cause


def _shapes_of_floats(model: onnx.ModelProto) -> None:
    image = model.graph.input[0].name
    nodes = list(model.graph.node)
    cast = next((node for node in nodes if node.op_type == "Cast" and node.input[0] == image), None)
    if cast is None or not any(node.op_type == "Shape" and node.input[0] == image for node in nodes):
        return
    nodes.remove(cast)
    for node in nodes:
        if node.op_type == "Shape" and node.input[0] == image:
            node.input[0] = cast.output[0]
    del model.graph.node[:]
    model.graph.node.extend([cast, *nodes])  # before all that looks at it
