"""
The operators of ONNX that exported segmentation models are made of, in torch and differentiable.

Each function takes the inputs of a node, None where one is left out, and its attributes, and returns its output. Rounding lets
gradients pass as if it were not there; what it cuts off has none, for there the engine does not change either. The forms that a
function does not compute raise NotSupportedError; the official node cases of ONNX hold it to that.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from onnx import TensorProto, numpy_helper
from torch import Tensor

from ddcat_bench.gate import twin_maps as maps
from ddcat_bench.gate.twin_operator import DTYPES, Attributes, Inputs, NotSupportedError, Operator, operator

__all__ = ["NODES", "as_tensor"]

_BYTES = {torch.int8: (-128, 127), torch.uint8: (0, 255)}
_WINDOWS = "auto_pad", "dilations", "kernel_shape", "pads", "strides"


def as_tensor(tensor: TensorProto) -> Tensor:
    """
    Read a constant of a graph.

    Raises
    ------
    NotSupportedError
        Naming a type that torch does not compute with.
    """
    if tensor.data_type not in DTYPES:
        raise NotSupportedError(f"values of type {TensorProto.DataType.Name(tensor.data_type)}")
    if tensor.data_location == TensorProto.EXTERNAL:
        raise NotSupportedError("values in another file")
    values = numpy_helper.to_array(tensor)
    if tensor.data_type == TensorProto.BFLOAT16:  # numpy has no such type, and torch takes none of another library
        return torch.from_numpy(values.astype("float32")).to(torch.bfloat16)
    return torch.from_numpy(values.copy())


def _gemm(inputs: Inputs, attributes: Attributes) -> Tensor:
    first, second, third = (*inputs, None)[:3]
    first = first.T if attributes.get("transA", 0) else first
    second = second.T if attributes.get("transB", 0) else second
    product: Tensor = attributes.get("alpha", 1.0) * (first @ second)
    return product if third is None else product + attributes.get("beta", 1.0) * third


def _pow(inputs: Inputs, attributes: Attributes) -> Tensor:
    return torch.pow(inputs[0], inputs[1]).to(inputs[0].dtype)  # the type of the base, whatever the exponent's


def _reshape(inputs: Inputs, attributes: Attributes) -> Tensor:
    values, shape = inputs[0], inputs[1].tolist()
    if not attributes.get("allowzero", 0):
        shape = [values.shape[axis] if size == 0 else size for axis, size in enumerate(shape)]
    reshaped: Tensor = values.reshape(shape)
    return reshaped


def _expand(inputs: Inputs, attributes: Attributes) -> Tensor:
    values: Tensor = inputs[0]
    shape = [1] * (values.ndim - len(inputs[1])) + inputs[1].tolist()
    own = [1] * (len(shape) - values.ndim) + list(values.shape)
    return values.expand([size if other == 1 else other for size, other in zip(shape, own, strict=True)])  # either may be 1


def _transpose(inputs: Inputs, attributes: Attributes) -> Tensor:
    return inputs[0].permute(attributes.get("perm", list(reversed(range(inputs[0].ndim)))))  # type: ignore[no-any-return]


def _shape(inputs: Inputs, attributes: Attributes) -> Tensor:
    shape = list(inputs[0].shape)
    return torch.tensor(shape[attributes.get("start", 0) : attributes.get("end", len(shape))], dtype=torch.int64)


def _axes(inputs: Inputs, attributes: Attributes) -> list[int]:
    """Return the axes that an input or, in older opsets, an attribute names; none where neither does."""
    if len(inputs) > 1 and inputs[1] is not None:
        return inputs[1].tolist()  # type: ignore[no-any-return]
    return attributes.get("axes", [])  # type: ignore[no-any-return]


def _reduce(function: Callable[..., Tensor]) -> Operator:
    def reduce(inputs: Inputs, attributes: Attributes) -> Tensor:
        axes = _axes(inputs, attributes)
        if not axes and attributes.get("noop_with_empty_axes", 0):
            return function(inputs[0][None], [0], keepdim=False)  # each value by itself
        axes = axes or list(range(inputs[0].ndim))
        return function(inputs[0], axes, keepdim=bool(attributes.get("keepdims", 1)))

    return operator(reduce, "axes", "keepdims", "noop_with_empty_axes")


def _norm(values: Tensor, axes: list[int], *, keepdim: bool) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(values, dim=axes, keepdim=keepdim)
    return norm


def _squeeze(inputs: Inputs, attributes: Attributes) -> Tensor:
    axes = _axes(inputs, attributes)
    squeezed: Tensor = inputs[0].squeeze(tuple(axes)) if axes else inputs[0].squeeze()
    return squeezed


def _unsqueeze(inputs: Inputs, attributes: Attributes) -> Tensor:
    values, axes = inputs[0], _axes(inputs, attributes)
    rank = values.ndim + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        values = values.unsqueeze(axis)
    return values  # type: ignore[no-any-return]


def _slice(inputs: Inputs, attributes: Attributes) -> Tensor:
    values, starts, ends, axes, steps = (*inputs, None, None)[:5]
    slices = [slice(None)] * values.ndim
    places = range(len(starts)) if axes is None else axes.tolist()
    strides = [1] * len(starts) if steps is None else steps.tolist()
    for axis, start, end, step in zip(places, starts.tolist(), ends.tolist(), strides, strict=True):
        if step < 0:
            raise NotSupportedError(f"a step of {step}")
        # ONNX means the end of an axis by the largest int64, which torch takes for a fault: Python clips both alike
        slices[axis] = slice(*slice(start, end, step).indices(values.shape[axis]))
    return values[tuple(slices)]  # type: ignore[no-any-return]


def _split(inputs: Inputs, attributes: Attributes) -> tuple[Tensor, ...]:
    values, sizes = (*inputs, None)[:2]
    axis = attributes.get("axis", 0)
    if sizes is None:
        if "num_outputs" not in attributes:
            raise NotSupportedError("parts whose number is not given")
        return values.split(math.ceil(values.shape[axis] / attributes["num_outputs"]), axis)  # type: ignore[no-any-return]
    return values.split(sizes.tolist(), axis)  # type: ignore[no-any-return]


def _gather(inputs: Inputs, attributes: Attributes) -> Tensor:
    values, index = inputs
    axis = attributes.get("axis", 0) % values.ndim
    places = torch.where(index < 0, index + values.shape[axis], index).flatten()
    gathered: Tensor = values.index_select(axis, places)
    return gathered.reshape([*values.shape[:axis], *index.shape, *values.shape[axis + 1 :]])


def _gather_nd(inputs: Inputs, attributes: Attributes) -> Tensor:
    return inputs[0][tuple(inputs[1].unbind(-1))]  # type: ignore[no-any-return]


def _constant(inputs: Inputs, attributes: Attributes) -> Tensor:
    ((name, value),) = attributes.items()
    if name == "value":
        return as_tensor(value)
    if name in ("value_int", "value_ints"):
        return torch.tensor(value, dtype=torch.int64)
    if name in ("value_float", "value_floats"):
        return torch.tensor(value, dtype=torch.float32)
    raise NotSupportedError(f"a constant by {name}")


def _constant_of_shape(inputs: Inputs, attributes: Attributes) -> Tensor:
    value = as_tensor(attributes["value"]) if "value" in attributes else torch.zeros(1)
    return value.reshape(()).expand(inputs[0].tolist())


def _quantise(inputs: Inputs, attributes: Attributes) -> Tensor:
    values, scale, zero = (*inputs, None)[:3]
    if attributes.get("output_dtype", 0) not in (0, TensorProto.INT8, TensorProto.UINT8):
        raise NotSupportedError(f"output_dtype {TensorProto.DataType.Name(attributes['output_dtype'])}")
    dtype = zero.dtype if zero is not None else DTYPES[attributes.get("output_dtype", 0) or TensorProto.UINT8]
    if dtype not in _BYTES or not values.is_floating_point():
        raise NotSupportedError(f"{values.dtype} to {dtype}")
    exact = values / _along(scale, values, attributes)
    rounded: Tensor = exact + (exact.round() - exact).detach()  # half to even, as ONNX has it
    low, high = _BYTES[dtype]
    offset = 0 if zero is None else _along(zero, values, attributes)
    return (rounded + offset).clamp(low, high)  # whole numbers, kept as floats so that gradients pass


def _dequantise(inputs: Inputs, attributes: Attributes) -> Tensor:
    values, scale, zero = (*inputs, None)[:3]
    scale = _along(scale, values, attributes)
    whole: Tensor = values.to(scale.dtype)
    return (whole if zero is None else whole - _along(zero, values, attributes).to(scale.dtype)) * scale


def _along(part: Tensor, values: Tensor, attributes: Attributes) -> Tensor:
    """Broadcast one value for each place of an axis."""
    if part.ndim > 1:
        raise NotSupportedError("a scale for each block")
    if part.numel() == 1:
        return part.reshape(())
    shape = [1] * values.ndim
    shape[attributes.get("axis", 1)] = -1
    return part.reshape(shape)


def _cast(inputs: Inputs, attributes: Attributes) -> Tensor:
    if attributes["to"] not in DTYPES:
        raise NotSupportedError(f"a cast to {TensorProto.DataType.Name(attributes['to'])}")
    return inputs[0].to(DTYPES[attributes["to"]])  # type: ignore[no-any-return]


def _clip(inputs: Inputs, attributes: Attributes) -> Tensor:
    values, low, high = (*inputs, None, None)[:3]
    return values if low is None and high is None else values.clamp(low, high)  # type: ignore[no-any-return]


def _hard_sigmoid(inputs: Inputs, attributes: Attributes) -> Tensor:
    line: Tensor = attributes.get("alpha", 0.2) * inputs[0] + attributes.get("beta", 0.5)
    return line.clamp(0, 1)


def _flatten(inputs: Inputs, attributes: Attributes) -> Tensor:
    shape = inputs[0].shape
    return inputs[0].reshape(math.prod(shape[: attributes.get("axis", 1)]), -1)  # type: ignore[no-any-return]


def _gelu(inputs: Inputs, attributes: Attributes) -> Tensor:
    return F.gelu(inputs[0], approximate=attributes.get("approximate", b"none").decode())


def _layer_norm(inputs: Inputs, attributes: Attributes) -> Tensor:
    values, scale, bias = (*inputs, None)[:3]
    return F.layer_norm(values, values.shape[attributes.get("axis", -1) :], scale, bias, attributes.get("epsilon", 1e-5))


def _group_norm(inputs: Inputs, attributes: Attributes) -> Tensor:
    values, scale, bias = inputs
    if len(scale) != values.shape[1]:
        raise NotSupportedError("a scale for each group")  # as opset 18 had it
    return F.group_norm(values, attributes["num_groups"], scale, bias, attributes.get("epsilon", 1e-5))


def _of_one(function: Callable[[Any], Any]) -> Operator:
    return operator(lambda inputs, attributes: function(inputs[0]))


def _of_two(function: Callable[[Any, Any], Any]) -> Operator:
    return operator(lambda inputs, attributes: function(inputs[0], inputs[1]))


def _of_all(function: Callable[[Any, Any], Any]) -> Operator:
    return operator(lambda inputs, attributes: functools.reduce(function, inputs))


def _divide(first: Tensor, second: Tensor) -> Tensor:
    return first / second if first.is_floating_point() else torch.div(first, second, rounding_mode="trunc")


NODES: dict[str, Operator] = {
    "Abs": _of_one(torch.abs),
    "Add": _of_two(torch.add),
    "And": _of_two(torch.logical_and),
    "ArgMax": operator(
        lambda inputs, attributes: inputs[0].argmax(attributes.get("axis", 0), bool(attributes.get("keepdims", 1))),
        "axis", "keepdims",
    ),
    "AveragePool": operator(maps.average_pool, *_WINDOWS, "ceil_mode", "count_include_pad"),
    "Cast": operator(_cast, "to"),
    "Clip": operator(_clip),
    "Concat": operator(lambda inputs, attributes: torch.cat(list(inputs), attributes["axis"]), "axis"),
    "Constant": operator(_constant, "value", "value_int", "value_ints", "value_float", "value_floats"),
    "ConstantOfShape": operator(_constant_of_shape, "value"),
    "Conv": operator(maps.conv, *_WINDOWS, "group"),
    "ConvTranspose": operator(maps.conv_transpose, *_WINDOWS, "group", "output_padding"),
    "Cos": _of_one(torch.cos),
    "DequantizeLinear": operator(_dequantise, "axis"),
    "Div": _of_two(_divide),
    "Einsum": operator(lambda inputs, attributes: torch.einsum(attributes["equation"].decode(), *inputs), "equation"),
    "Equal": _of_two(torch.eq),
    "Erf": _of_one(torch.erf),
    "Exp": _of_one(torch.exp),
    "Expand": operator(_expand),
    "Flatten": operator(_flatten, "axis"),
    "Floor": _of_one(torch.floor),
    "Gather": operator(_gather, "axis"),
    "GatherND": operator(_gather_nd),
    "Gelu": operator(_gelu, "approximate"),
    "Gemm": operator(_gemm, "alpha", "beta", "transA", "transB"),
    "GlobalAveragePool": _of_one(lambda values: values.mean(tuple(range(2, values.ndim)), keepdim=True)),
    "Greater": _of_two(torch.gt),
    "GreaterOrEqual": _of_two(torch.ge),
    "GridSample": operator(maps.grid_sample, "align_corners", "mode", "padding_mode"),
    "GroupNormalization": operator(_group_norm, "epsilon", "num_groups"),
    "HardSigmoid": operator(_hard_sigmoid, "alpha", "beta"),
    "HardSwish": _of_one(F.hardswish),
    "Identity": _of_one(lambda values: values),
    "LayerNormalization": operator(_layer_norm, "axis", "epsilon"),
    "Less": _of_two(torch.lt),
    "LessOrEqual": _of_two(torch.le),
    "Log": _of_one(torch.log),
    "MatMul": _of_two(torch.matmul),
    "Max": _of_all(torch.maximum),
    "MaxPool": operator(maps.max_pool, *_WINDOWS, "ceil_mode"),
    "Min": _of_all(torch.minimum),
    "Mul": _of_two(torch.mul),
    "Neg": _of_one(torch.neg),
    "Not": _of_one(torch.logical_not),
    "Pad": operator(maps.pad, "mode"),
    "Pow": operator(_pow),
    "QuantizeLinear": operator(_quantise, "axis", "output_dtype"),
    "Range": operator(
        lambda inputs, attributes: torch.arange(*(value.item() for value in inputs), dtype=inputs[0].dtype)
    ),
    "Reciprocal": _of_one(torch.reciprocal),
    "ReduceL2": _reduce(_norm),
    "ReduceMax": _reduce(torch.amax),
    "ReduceMean": _reduce(torch.mean),
    "ReduceSum": _reduce(torch.sum),
    "Relu": _of_one(F.relu),
    "Reshape": operator(_reshape, "allowzero"),
    "Resize": operator(
        maps.resize, "axes", "coordinate_transformation_mode", "cubic_coeff_a", "mode", "nearest_mode",
    ),
    "Shape": operator(_shape, "start", "end"),
    "Sigmoid": _of_one(torch.sigmoid),
    "Sign": _of_one(torch.sign),
    "Sin": _of_one(torch.sin),
    "Slice": operator(_slice),
    "Softmax": operator(lambda inputs, attributes: inputs[0].softmax(attributes.get("axis", -1)), "axis"),
    "Split": operator(_split, "axis", "num_outputs"),
    "Sqrt": _of_one(torch.sqrt),
    "Squeeze": operator(_squeeze, "axes"),
    "Sub": _of_two(torch.sub),
    "Tanh": _of_one(torch.tanh),
    "Tile": operator(lambda inputs, attributes: inputs[0].repeat(inputs[1].tolist())),
    "Transpose": operator(_transpose, "perm"),
    "Unsqueeze": operator(_unsqueeze, "axes"),
    "Where": operator(lambda inputs, attributes: torch.where(inputs[0], inputs[1], inputs[2])),
}  # fmt: skip
