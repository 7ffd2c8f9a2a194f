"""
The operators of ONNX that `ddcat-export` writes, in torch and differentiable.

Each function takes the inputs of a node, None where one is left out, and its attributes, and returns its output. Rounding lets
gradients pass as if it were not there; what it cuts off has none, for there the engine does not change either.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from onnx import TensorProto
from torch import Tensor

from ddcat_bench.errors import BenchError

__all__ = ["NODES", "Node"]

Attributes = Mapping[str, Any]
Node = Callable[[Sequence[Any], Attributes], Tensor]

_TYPES = {
    TensorProto.FLOAT: torch.float32, TensorProto.FLOAT16: torch.float16, TensorProto.BFLOAT16: torch.bfloat16,
    TensorProto.DOUBLE: torch.float64, TensorProto.INT64: torch.int64, TensorProto.INT32: torch.int32,
    TensorProto.UINT8: torch.uint8, TensorProto.INT8: torch.int8, TensorProto.BOOL: torch.bool,
}  # fmt: skip
_BYTES = {torch.int8: (-128, 127), torch.uint8: (0, 255)}


def _refuse(what: str) -> BenchError:
    return BenchError(f"the differentiable executor does not know {what}: no ddcat-export of this version writes it")


def _symmetric(pads: Sequence[int]) -> list[int]:
    half = len(pads) // 2
    if list(pads[:half]) != list(pads[half:]):
        raise _refuse(f"padding {list(pads)}, another one at the end than at the beginning")
    return list(pads[:half])


def _automatic(attributes: Attributes) -> None:
    if attributes.get("auto_pad", b"NOTSET") != b"NOTSET" or attributes.get("ceil_mode", 0):
        raise _refuse("automatic padding, and windows that reach beyond the map")


def _conv(inputs: Sequence[Any], attributes: Attributes) -> Tensor:
    _automatic(attributes)
    maps, weight, bias = (*inputs, None)[:3]
    pads = _symmetric(attributes.get("pads", [0] * 2 * (maps.ndim - 2)))
    return F.conv2d(
        maps, weight, bias, attributes.get("strides", 1), pads, attributes.get("dilations", 1), attributes.get("group", 1)
    )


def _conv_transpose(inputs: Sequence[Any], attributes: Attributes) -> Tensor:
    _automatic(attributes)
    maps, weight, bias = (*inputs, None)[:3]
    pads = _symmetric(attributes.get("pads", [0] * 2 * (maps.ndim - 2)))
    strides, extra = attributes.get("strides", 1), attributes.get("output_padding", 0)
    return F.conv_transpose2d(
        maps, weight, bias, strides, pads, extra, attributes.get("group", 1), attributes.get("dilations", 1)
    )


def _max_pool(inputs: Sequence[Any], attributes: Attributes) -> Tensor:
    _automatic(attributes)
    pads = _symmetric(attributes.get("pads", [0, 0, 0, 0]))
    return F.max_pool2d(
        inputs[0], attributes["kernel_shape"], attributes.get("strides", 1), pads, attributes.get("dilations", 1)
    )


def _average_pool(inputs: Sequence[Any], attributes: Attributes) -> Tensor:
    _automatic(attributes)
    pads = _symmetric(attributes.get("pads", [0, 0, 0, 0]))
    counted = bool(attributes.get("count_include_pad", 0))
    return F.avg_pool2d(inputs[0], attributes["kernel_shape"], attributes.get("strides", 1), pads, count_include_pad=counted)


def _gemm(inputs: Sequence[Any], attributes: Attributes) -> Tensor:
    first, second, third = (*inputs, None)[:3]
    first = first.T if attributes.get("transA", 0) else first
    second = second.T if attributes.get("transB", 0) else second
    product: Tensor = attributes.get("alpha", 1.0) * (first @ second)
    return product if third is None else product + attributes.get("beta", 1.0) * third


def _resize(inputs: Sequence[Any], attributes: Attributes) -> Tensor:
    known = attributes.get("mode"), attributes.get("coordinate_transformation_mode"), attributes.get("antialias", 0)
    if known != (b"linear", b"align_corners", 0) or len(inputs) != 4 or inputs[3] is None:
        raise _refuse(f"resizing by {known}")
    maps, sizes = inputs[0], inputs[3].tolist()
    return F.interpolate(maps, size=sizes[-2:], mode="bilinear", align_corners=True)


def _reshape(inputs: Sequence[Any], attributes: Attributes) -> Tensor:
    values, shape = inputs[0], inputs[1].tolist()
    if not attributes.get("allowzero", 0):
        shape = [values.shape[axis] if size == 0 else size for axis, size in enumerate(shape)]
    reshaped: Tensor = values.reshape(shape)
    return reshaped


def _shape(inputs: Sequence[Any], attributes: Attributes) -> Tensor:
    shape = list(inputs[0].shape)
    return torch.tensor(shape[attributes.get("start", 0) : attributes.get("end", len(shape))], dtype=torch.int64)


def _axes(inputs: Sequence[Any], attributes: Attributes, place: int = 1) -> list[int] | None:
    if len(inputs) > place and inputs[place] is not None:
        return inputs[place].tolist()  # type: ignore[no-any-return]
    return attributes.get("axes")


def _reduce(function: Callable[..., Tensor]) -> Node:
    def reduce(inputs: Sequence[Any], attributes: Attributes) -> Tensor:
        axes = _axes(inputs, attributes)
        if axes is None:
            if attributes.get("noop_with_empty_axes", 0):
                return inputs[0]  # type: ignore[no-any-return]
            axes = list(range(inputs[0].ndim))
        return function(inputs[0], axes, keepdim=bool(attributes.get("keepdims", 1)))

    return reduce


def _squeeze(inputs: Sequence[Any], attributes: Attributes) -> Tensor:
    axes = _axes(inputs, attributes)
    squeezed: Tensor = inputs[0].squeeze() if axes is None else inputs[0].squeeze(tuple(axes))
    return squeezed


def _unsqueeze(inputs: Sequence[Any], attributes: Attributes) -> Tensor:
    values, axes = inputs[0], _axes(inputs, attributes) or []
    rank = values.ndim + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        values = values.unsqueeze(axis)
    return values  # type: ignore[no-any-return]


def _slice(inputs: Sequence[Any], attributes: Attributes) -> Tensor:
    values, starts, ends, axes, steps = (*inputs, None, None)[:5]
    chosen = [slice(None)] * values.ndim
    places = range(len(starts)) if axes is None else axes.tolist()
    pace = [1] * len(starts) if steps is None else steps.tolist()
    for axis, start, end, step in zip(places, starts.tolist(), ends.tolist(), pace, strict=True):
        if step < 0:
            raise _refuse("slices that go backwards")
        chosen[axis] = slice(start, end, step)
    return values[tuple(chosen)]  # type: ignore[no-any-return]


def _gather(inputs: Sequence[Any], attributes: Attributes) -> Tensor:
    values, index = inputs
    axis = attributes.get("axis", 0)
    found = values.index_select(axis, index.flatten() % values.shape[axis])
    return found.reshape(*values.shape[:axis], *index.shape, *values.shape[axis + 1 :])  # type: ignore[no-any-return]


def _pad(inputs: Sequence[Any], attributes: Attributes) -> Tensor:
    values, pads, value = (*inputs, None)[:3]
    if attributes.get("mode", b"constant") != b"constant" or len(inputs) > 3:
        raise _refuse("padding by other than a constant")
    amounts, rank = pads.tolist(), values.ndim
    both = [amounts[axis + end * rank] for axis in reversed(range(rank)) for end in (0, 1)]
    return F.pad(values, both, value=0.0 if value is None else float(value))


def _quantise(inputs: Sequence[Any], attributes: Attributes) -> Tensor:
    values, scale, zero = inputs
    low, high = _BYTES[zero.dtype]
    scale, zero = (_along(part, values, attributes) for part in (scale, zero))
    exact = values / scale
    rounded: Tensor = exact + (exact.round() - exact).detach()  # half to even, as ONNX has it
    return (rounded + zero).clamp(low, high)  # whole numbers, kept as floats so that gradients pass


def _dequantise(inputs: Sequence[Any], attributes: Attributes) -> Tensor:
    values, scale, zero = (*inputs, None)[:3]
    scale = _along(scale, values, attributes)
    whole: Tensor = values.to(scale.dtype)
    return (whole if zero is None else whole - _along(zero, values, attributes).to(scale.dtype)) * scale


def _along(part: Tensor, values: Tensor, attributes: Attributes) -> Tensor:
    """Let one value for each place of an axis stand beside all of that place."""
    if part.ndim == 0 or part.numel() == 1:
        return part.reshape(())
    shape = [1] * values.ndim
    shape[attributes.get("axis", 1)] = -1
    return part.reshape(shape)


def _cast(inputs: Sequence[Any], attributes: Attributes) -> Tensor:
    if attributes["to"] not in _TYPES:
        raise _refuse(f"type {attributes['to']}")
    return inputs[0].to(_TYPES[attributes["to"]])  # type: ignore[no-any-return]


def _clip(inputs: Sequence[Any], attributes: Attributes) -> Tensor:
    values, low, high = (*inputs, None, None)[:3]
    return values.clamp(low, high)  # type: ignore[no-any-return]


def _hard_sigmoid(inputs: Sequence[Any], attributes: Attributes) -> Tensor:
    line: Tensor = attributes.get("alpha", 0.2) * inputs[0] + attributes.get("beta", 0.5)
    return line.clamp(0, 1)


def _flatten(inputs: Sequence[Any], attributes: Attributes) -> Tensor:
    shape = inputs[0].shape
    return inputs[0].reshape(math.prod(shape[: attributes.get("axis", 1)]), -1)  # type: ignore[no-any-return]


def _gelu(inputs: Sequence[Any], attributes: Attributes) -> Tensor:
    return F.gelu(inputs[0], approximate=attributes.get("approximate", b"none").decode())


def _layer_norm(inputs: Sequence[Any], attributes: Attributes) -> Tensor:
    values, scale, bias = (*inputs, None)[:3]
    return F.layer_norm(values, values.shape[attributes.get("axis", -1) :], scale, bias, attributes.get("epsilon", 1e-5))


def _of_one(function: Callable[[Any], Any]) -> Node:
    return lambda inputs, attributes: function(inputs[0])


def _of_two(function: Callable[[Any, Any], Any]) -> Node:
    return lambda inputs, attributes: function(inputs[0], inputs[1])


def _of_all(function: Callable[[Any, Any], Any]) -> Node:
    return lambda inputs, attributes: functools.reduce(function, inputs)


def _divide(first: Tensor, second: Tensor) -> Tensor:
    return first / second if first.is_floating_point() else torch.div(first, second, rounding_mode="trunc")


NODES: dict[str, Node] = {
    "Abs": _of_one(torch.abs),
    "Add": _of_two(torch.add),
    "And": _of_two(torch.logical_and),
    "ArgMax": lambda inputs, attributes: inputs[0].argmax(attributes.get("axis", 0), bool(attributes.get("keepdims", 1))),
    "AveragePool": _average_pool,
    "Cast": _cast,
    "Clip": _clip,
    "Concat": lambda inputs, attributes: torch.cat(list(inputs), attributes["axis"]),
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "DequantizeLinear": _dequantise,
    "Div": _of_two(_divide),
    "Equal": _of_two(torch.eq),
    "Erf": _of_one(torch.erf),
    "Exp": _of_one(torch.exp),
    "Expand": lambda inputs, attributes: inputs[0] * torch.ones(inputs[1].tolist(), dtype=inputs[0].dtype),
    "Flatten": _flatten,
    "Floor": _of_one(torch.floor),
    "Gather": _gather,
    "Gelu": _gelu,
    "Gemm": _gemm,
    "GlobalAveragePool": lambda inputs, attributes: inputs[0].mean((2, 3), keepdim=True),
    "Greater": _of_two(torch.gt),
    "GreaterOrEqual": _of_two(torch.ge),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _of_one(F.hardswish),
    "Identity": _of_one(lambda values: values),
    "LayerNormalization": _layer_norm,
    "Less": _of_two(torch.lt),
    "LessOrEqual": _of_two(torch.le),
    "MatMul": _of_two(torch.matmul),
    "Max": _of_all(torch.maximum),
    "MaxPool": _max_pool,
    "Min": _of_all(torch.minimum),
    "Mul": _of_two(torch.mul),
    "Neg": _of_one(torch.neg),
    "Not": _of_one(torch.logical_not),
    "Pad": _pad,
    "Pow": _of_two(torch.pow),
    "QuantizeLinear": _quantise,
    "Range": lambda inputs, attributes: torch.arange(*(value.item() for value in inputs), dtype=inputs[0].dtype),
    "Reciprocal": _of_one(torch.reciprocal),
    "ReduceMax": _reduce(torch.amax),
    "ReduceMean": _reduce(torch.mean),
    "ReduceSum": _reduce(torch.sum),
    "Relu": _of_one(F.relu),
    "Reshape": _reshape,
    "Resize": _resize,
    "Shape": _shape,
    "Sigmoid": _of_one(torch.sigmoid),
    "Slice": _slice,
    "Softmax": lambda inputs, attributes: inputs[0].softmax(attributes.get("axis", -1)),
    "Sqrt": _of_one(torch.sqrt),
    "Squeeze": _squeeze,
    "Sub": _of_two(torch.sub),
    "Tanh": _of_one(torch.tanh),
    "Transpose": lambda inputs, attributes: inputs[0].permute(attributes["perm"]),
    "Unsqueeze": _unsqueeze,
    "Where": lambda inputs, attributes: torch.where(inputs[0], inputs[1], inputs[2]),
}
