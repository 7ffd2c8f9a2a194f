"""Adapt a graph to the ONNX parser of TensorRT, and refuse unsupported nodes first: the parser says less, and later."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from ddcat.engines.errors import EngineError
from ddcat.engines.tensorrt.plan import version_of
from ddcat.error_text import first_line
from ddcat.manifest import Precision
from ddcat_export.opsets import lower

__all__ = ["adapt", "last_opset"]

_FLOATS = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16})
_NUMBERS = _FLOATS | {TensorProto.INT32, TensorProto.INT64}
_ALL = _NUMBERS | {TensorProto.BOOL}
_BOOL = frozenset({TensorProto.BOOL})

# Operators that our networks have or may come to have, by the types that their first input may have. The parser's own list
# (docs/operators.md of onnx-tensorrt) is longer; its other operators are untried here.
_TAKEN: dict[str, frozenset[int]] = {
    **dict.fromkeys(
        ("AveragePool", "BatchNormalization", "Ceil", "Clip", "Conv", "ConvTranspose", "Erf", "Exp", "Floor", "Gemm",
         "GlobalAveragePool", "HardSigmoid", "HardSwish", "InstanceNormalization", "LayerNormalization", "LeakyRelu", "Log",
         "MatMul", "MaxPool", "QuantizeLinear", "Reciprocal", "Resize", "Sigmoid", "Softmax", "Sqrt", "Tanh"),
        _FLOATS,
    ),
    **dict.fromkeys(
        ("Abs", "Add", "ArgMax", "Div", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Min", "Mod", "Mul",
         "Neg", "Pad", "Pow", "Range", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum", "Relu", "Sub"),
        _NUMBERS,
    ),
    **dict.fromkeys(
        ("Concat", "ConstantOfShape", "Expand", "Flatten", "Gather", "Identity", "Reshape", "Shape", "Slice", "Split",
         "Squeeze", "Transpose", "Unsqueeze"),
        _ALL,
    ),
    **dict.fromkeys(("And", "Not", "Or", "Where"), _BOOL),
    "Cast": _ALL | {TensorProto.UINT8},
    "DequantizeLinear": frozenset({TensorProto.INT8}),
}  # fmt: skip
_FLOAT_IN_8 = ("ArgMax", "Pow", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum", "Relu")
_LAST_OPSETS = (((11, 0), 24), ((10, 15), 24), ((10, 6), 22), ((10, 0), 20), ((8, 6), 17))
_RESIZES = ("half_pixel", "pytorch_half_pixel", "asymmetric", "align_corners")
_INT32 = np.iinfo(np.int32)


def last_opset(version: str) -> int:
    """Return the newest opset that the parser of a TensorRT reads: that of the ONNX which it was built with."""
    return next((opset for since, opset in _LAST_OPSETS if version_of(version) >= since), 0)


def adapt(content: bytes, version: str, precision: Precision) -> bytes:
    """
    Adapt a graph to a version of TensorRT, without changing what it computes.

    A graph of a newer opset is converted. A shape is taken of the float image instead of the uint8 one: TensorRT allows uint8
    for inputs and outputs alone.

    Parameters
    ----------
    content : bytes
        An ONNX file.
    version : str
        Version of TensorRT.
    precision : Precision
        Precision of the graph.

    Returns
    -------
    bytes
        The graph for the parser.

    Raises
    ------
    EngineError
        Naming the first unsupported node, and the reason.
    """
    model = _lower(onnx.load_model_from_string(content), version)
    _shapes_of_floats(model)
    fault = next(_unsupported(model, version), None)
    if fault is None and precision == "int8" and not any(node.op_type == "QuantizeLinear" for node in model.graph.node):
        fault = "it has no QuantizeLinear, so nothing in it would be int8"
    if fault is not None:
        raise EngineError(f"TensorRT {version} does not take the graph: {fault}")
    fitted: bytes = model.SerializeToString(deterministic=True)
    return fitted


def _unsupported(model: onnx.ModelProto, version: str) -> Iterator[str]:
    """
    List what a version of TensorRT does not support.

    Parameters
    ----------
    model : onnx.ModelProto
    version : str

    Yields
    ------
    str
        The node, its fault, and the remedy.
    """
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    named = (*inferred.graph.value_info, *model.graph.input, *model.graph.output)
    types = {value.name: value.type.tensor_type.elem_type for value in named}
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    types |= {name: tensor.data_type for name, tensor in constants.items()}
    for node in model.graph.node:
        if node.op_type == "Constant":
            constants |= {output: a.t for output in node.output for a in node.attribute if a.name == "value"}
    old = version_of(version)[0] == 8
    outputs = {value.name for value in model.graph.output}
    for node in model.graph.node:
        if node.op_type == "Constant":
            continue
        where = f"{node.name or node.output[0]} ({node.op_type})"
        taken = _TAKEN.get(node.op_type)
        kind = types.get(node.input[0], TensorProto.UNDEFINED) if node.input else TensorProto.UNDEFINED
        if taken is None or node.domain:
            yield f"{where}: it is not known to take such a node"
        elif kind not in (_FLOATS if old and node.op_type in _FLOAT_IN_8 else taken):
            yield f"{where}: it does not take one of {_name(kind)}"
        elif old and TensorProto.BFLOAT16 in {types.get(name) for name in (*node.input, *node.output)}:
            yield f"{where}: version 8 has no bfloat16; use fp16"
        else:
            yield from (f"{where}: {fault}" for fault in _node_faults(node, types, constants, outputs, kind))
    if old:
        for name, tensor in constants.items():
            if tensor.data_type == TensorProto.INT64 and not _is_end(name, model) and _beyond_int32(tensor):
                yield f"the constant {name} is beyond int32, to which version 8 would clamp it: use 10 or 11"


def _node_faults(
    node: onnx.NodeProto, types: dict[str, int], constants: dict[str, onnx.TensorProto], outputs: set[str], kind: int
) -> Iterator[str]:
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    if node.op_type == "Cast":
        if kind == TensorProto.UINT8 and attributes["to"] not in _FLOATS - {TensorProto.BFLOAT16}:
            yield f"it casts uint8 to {_name(attributes['to'])}: only to float32 and float16 is safe"
        if attributes["to"] == TensorProto.UINT8 and kind not in _FLOATS - {TensorProto.BFLOAT16}:
            yield f"it casts {_name(kind)} to uint8: only from float32 and float16 is safe"
        if attributes["to"] == TensorProto.UINT8 and node.output[0] not in outputs:
            yield "it makes a uint8 tensor within the graph: only inputs and outputs may be uint8"
        if attributes["to"] not in _ALL | {TensorProto.UINT8}:
            yield f"it casts to {_name(attributes['to'])}: it has no such type"
    elif node.op_type in ("QuantizeLinear", "DequantizeLinear"):
        yield from _quantisation_faults(node, types, constants)
    elif node.op_type == "Resize":
        mode, coordinates = attributes.get("mode", b"nearest"), attributes.get("coordinate_transformation_mode", b"half_pixel")
        if mode not in (b"nearest", b"linear") or coordinates.decode() not in _RESIZES:
            yield f"it resizes by {mode.decode()} and {coordinates.decode()}: use linear and {' or '.join(_RESIZES)}"
        if attributes.get("antialias", 0) or attributes.get("keep_aspect_ratio_policy", b"stretch") != b"stretch":
            yield "it resizes with antialiasing or a kept aspect ratio: it can do neither"
    elif node.op_type.startswith("Reduce") and len(node.input) > 1 and node.input[1] not in constants:
        yield "its axes are computed: use constants"
    elif node.op_type in ("MaxPool", "AveragePool") and (len(node.output) > 1 or set(attributes.get("dilations", ())) - {1}):
        yield "it pools with dilation or gives indices: it can do neither"


def _quantisation_faults(node: onnx.NodeProto, types: dict[str, int], constants: dict[str, onnx.TensorProto]) -> Iterator[str]:
    points = node.input[2] if len(node.input) > 2 else ""
    if types.get(points) != TensorProto.INT8:
        yield f"it quantises to {_name(types.get(points, TensorProto.UINT8))}: use int8 alone"
    elif points not in constants or _values(constants[points]).any():
        yield "its zero point is not zero: use symmetric quantisation"
    if node.input[1] not in constants:
        yield "its scale is computed: use a constant"
    else:
        scale = _values(constants[node.input[1]]).astype(np.float64)
        if not (np.isfinite(scale) & (scale > 0)).all():
            yield "a scale of it is not positive and finite"
        if scale.size > 1 and node.op_type == "QuantizeLinear" and node.input[0] not in constants:
            yield "it has a scale for each channel of an activation: use one for all"


def _lower(model: onnx.ModelProto, version: str) -> onnx.ModelProto:
    domains = {entry.domain: entry.version for entry in model.opset_import}
    opset, newest = domains.get("", 0), last_opset(version)
    if set(domains) != {""}:
        raise EngineError(f"TensorRT {version} takes operators of ONNX alone, and the graph has some of {', '.join(domains)}")
    if opset <= newest:
        return model
    try:
        return lower(model, newest)
    except Exception as cause:  # its exceptions share no base
        reason = first_line(cause).rpartition("failed: ")[2]  # before it, a place in ONNX's source
        raise EngineError(
            f"TensorRT {version} reads ONNX up to opset {newest}, and the graph of opset {opset} cannot be made one: {reason}"
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


def _is_end(name: str, model: onnx.ModelProto) -> bool:
    # the end of a slice may be as large as it likes: clamped it is the end all the same
    users = [node for node in model.graph.node if name in node.input]
    return all(node.op_type == "Slice" and node.input[2] == name for node in users)


def _beyond_int32(tensor: onnx.TensorProto) -> bool:
    values = _values(tensor)
    return bool(((values < _INT32.min) | (values > _INT32.max)).any())


def _values(tensor: onnx.TensorProto) -> npt.NDArray[Any]:
    return numpy_helper.to_array(tensor)


def _name(kind: int) -> str:
    return str(TensorProto.DataType.Name(kind)).lower() if kind else "an unknown type"
