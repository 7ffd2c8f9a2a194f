"""Check graphs of every precision: validity, opset, types, inputs and outputs."""

from collections.abc import Collection, Iterable
from typing import Any

import onnx
from onnx import TensorProto

from ddcat.choices import Precision
from ddcat.error_text import first_line
from ddcat_export.errors import ExportError

__all__ = ["ANY_SIZE", "COMPUTES", "LOGITS", "OPSET", "PRODUCTS", "check_form", "check_graph", "set_constants", "types_of"]

# The first whose convolutions take bfloat16. One for all precisions, so that they differ in types and nothing else: ONNX
# Runtime, OpenVINO and the parser of TensorRT 10 and 11 read it, and ONNX Runtime is as fast with it as with older ones.
OPSET = 22
ANY_SIZE = 1 << 40  # bytes; whatever is constant is folded, a slice of a weight, too: it is cast and quantised as any other
LOGITS = "logits"  # the name of the logits at low resolution, be they an output or not

PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")  # all operators that multiply maps by weights or by each other
COMPUTES: dict[Precision, int] = {  # what these compute in
    "fp32": TensorProto.FLOAT,
    "fp16": TensorProto.FLOAT16,
    "bf16": TensorProto.BFLOAT16,
    "int8": TensorProto.FLOAT,  # as written: the quantise and dequantise nodes around them say what they are computed in
}
_ALWAYS = {TensorProto.FLOAT, TensorProto.INT64, TensorProto.INT32, TensorProto.UINT8, TensorProto.BOOL}
_IMAGE, _LABELS = "image", "labels"


def check_graph(model: onnx.ModelProto, precision: Precision, opset: int = OPSET, *, fp32: Collection[str] = ()) -> None:
    """
    Refuse a graph that is not valid, of another opset, or not typed as its precision says.

    Every tensor must be known to be float32, int64, int32, uint8 or bool, or of the type of the precision. In that type all
    convolutions and matrix products compute but those named in `fp32`, while input, normalisation, logits and all that comes
    of them stay as they are.

    Raises
    ------
    ExportError
        Naming the first tensor or node that is wrong.
    """
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    if opsets != {"": opset} or model.functions:
        domains = [name for name in opsets if name]
        raise ExportError(
            f"the graph has opset {opsets.get('')} and further domains {domains}, expected opset {opset} of ONNX "
            "alone: use another version of torch"
        )
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as cause:  # its exceptions share no base
        raise ExportError(f"the graph is not valid ONNX: {first_line(cause)}") from cause
    types = types_of(model)
    allowed = _ALWAYS | {COMPUTES[precision]} | ({TensorProto.INT8} if precision == "int8" else set())
    for name, kind in types.items():
        if kind not in allowed:
            raise ExportError(f"tensor {name} is {_name(kind)} in a graph at {precision}: use {_names(allowed)}")
    for node in model.graph.node:
        unknown = [name for name in node.output if name and name not in types]
        if unknown or node.op_type == "BatchNormalization":
            fault = f"the type of {unknown[0]} is not known" if unknown else "a batch norm is left"
            raise ExportError(f"{fault} at {node.name} in the graph: runtimes would compute it differently")
        found = {types[name] for name in (*node.input, *node.output) if name}
        expected = COMPUTES["fp32" if node.name in fp32 else precision]
        if node.op_type in PRODUCTS and found != {expected}:
            raise ExportError(f"{node.name} ({node.op_type}) has the types {_names(found)} in a graph at {precision}")
    for name, kind in ((_IMAGE, TensorProto.UINT8), (_LABELS, TensorProto.UINT8), (LOGITS, TensorProto.FLOAT)):
        if types.get(name) != kind:
            raise ExportError(f"{name} is {_name(types.get(name))} in the graph, expected {_name(kind)}")


def check_form(
    model: onnx.ModelProto,
    classes: int,
    size: tuple[int, int] | None,
    *,
    channels: int = 3,
    logits: bool,
    confidence: bool,
) -> None:
    """
    Refuse a graph whose inputs and outputs, with their types and axes, are not the requested ones.

    Parameters
    ----------
    model : onnx.ModelProto
    classes : int
    size : (height, width) or None
        Size of the images; None: free.
    channels : int
        Of the images.
    logits, confidence : bool
        These are outputs.

    Raises
    ------
    ExportError
    """
    height, width = size or ("height", "width")
    outputs = {value.name: value for value in model.graph.output}
    expected: dict[str, tuple[int, tuple[int | str, ...]]] = {
        _IMAGE: (TensorProto.UINT8, ("batch", height, width, channels)),
        _LABELS: (TensorProto.UINT8, ("batch", height, width)),
    }
    if logits:
        low: tuple[int | str, ...] = ("logits_height", "logits_width")
        if size is not None and LOGITS in outputs:  # the output stride is the network's affair
            low = _axes(outputs[LOGITS])[2:]
        expected[LOGITS] = (TensorProto.FLOAT, ("batch", classes, *low))
    if confidence:
        expected["confidence"] = (TensorProto.FLOAT, ("batch", height, width))
    stated = {v.name: (v.type.tensor_type.elem_type, _axes(v)) for v in (*model.graph.input, *model.graph.output)}
    fixed = [side for side in stated.get(_IMAGE, (0, ()))[1][1:3] if isinstance(side, int)]
    if size is None and fixed:
        raise ExportError("this network exports for one image size only, because its code depends on the size: use --size HxW")
    if list(stated.items()) != list(expected.items()):
        raise ExportError(f"the graph has inputs and outputs {stated}, expected {expected}")


def types_of(model: onnx.ModelProto) -> dict[str, int]:
    """Infer the type of every tensor, by name."""
    inferred = onnx.shape_inference.infer_shapes(model).graph
    types = {tensor.name: tensor.data_type for tensor in inferred.initializer}
    types |= {v.name: v.type.tensor_type.elem_type for v in (*inferred.input, *inferred.value_info, *inferred.output)}
    return {name: kind for name, kind in types.items() if kind != TensorProto.UNDEFINED}


def set_constants(graph: onnx.GraphProto, tensors: Iterable[onnx.TensorProto]) -> None:
    """Make the constants of a graph those of some tensors that its nodes read."""
    used = {name for node in graph.node for name in node.input}
    kept = [tensor for tensor in tensors if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _axes(value: onnx.ValueInfoProto) -> tuple[int | str, ...]:
    return tuple(d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim)


def _name(kind: int | None) -> str:
    return "absent" if kind is None else TensorProto.DataType.Name(kind).lower()


def _names(kinds: Any) -> str:
    return ", ".join(sorted(_name(kind) for kind in kinds))
