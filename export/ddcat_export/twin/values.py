"""The operators of ONNX that compute values: arithmetic, norms, quantise steps; in torch and differentiable."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from onnx import TensorProto
from torch import Tensor

from ddcat_export.twin.base import DTYPES, Attributes, Inputs, NotSupportedError, Operator, operator
from ddcat_export.twin.shapes import axes_of

__all__ = [
    "batch_norm", "cast", "clip", "cum_sum", "dequantise", "divide", "dropout", "flat", "gemm", "group_norm", "instance_norm",
    "layer_norm", "lp_norm", "mod", "product", "quantise", "reduction",
]  # fmt: skip

_BYTES = {torch.int8: (-128, 127), torch.uint8: (0, 255)}


def gemm(inputs: Inputs, attributes: Attributes) -> Tensor:
    """Multiply two matrices, and add a third."""
    first, second, third = (*inputs, None)[:3]
    first = first.T if attributes.get("transA", 0) else first
    second = second.T if attributes.get("transB", 0) else second
    product: Tensor = attributes.get("alpha", 1.0) * (first @ second)
    return product if third is None else product + attributes.get("beta", 1.0) * third


def divide(first: Tensor, second: Tensor) -> Tensor:
    """Divide; whole numbers towards 0."""
    return first / second if first.is_floating_point() else torch.div(first, second, rounding_mode="trunc")


def mod(inputs: Inputs, attributes: Attributes) -> Tensor:
    """Return what a division leaves: with the sign of the divisor, or by `fmod` of the dividend."""
    return (torch.fmod if attributes.get("fmod", 0) else torch.remainder)(inputs[0], inputs[1])


def clip(inputs: Inputs, attributes: Attributes) -> Tensor:
    """Bound values by what is given of two bounds."""
    values, low, high = (*inputs, None, None)[:3]
    return values if low is None and high is None else values.clamp(low, high)  # type: ignore[no-any-return]


def cast(inputs: Inputs, attributes: Attributes) -> Tensor:
    """Change the type of values."""
    if attributes["to"] not in DTYPES:
        raise NotSupportedError(f"a cast to {TensorProto.DataType.Name(attributes['to'])}")
    return inputs[0].to(DTYPES[attributes["to"]])  # type: ignore[no-any-return]


def dropout(inputs: Inputs, attributes: Attributes) -> Tensor:
    """Return the values as they are; training is refused."""
    if len(inputs) > 2 and inputs[2] is not None and bool(inputs[2]):
        raise NotSupportedError("training_mode")
    return inputs[0]  # type: ignore[no-any-return]


def cum_sum(inputs: Inputs, attributes: Attributes) -> Tensor:
    """Sum what comes before each place of an axis, with or without its own value, from either end."""
    values, axis = inputs[0], int(inputs[1])
    values = values.flip(axis) if attributes.get("reverse", 0) else values
    sums = values.cumsum(axis, dtype=values.dtype)
    sums = sums - values if attributes.get("exclusive", 0) else sums
    return sums.flip(axis) if attributes.get("reverse", 0) else sums  # type: ignore[no-any-return]


def flat(function: Callable[[Tensor, int], Tensor]) -> Operator:
    """Make the softmax of opsets before 13: over all axes from `axis` on, as if they were one."""

    def run(inputs: Inputs, attributes: Attributes) -> Tensor:
        values: Tensor = inputs[0]
        return function(values.flatten(attributes.get("axis", 1) % values.ndim), -1).reshape(values.shape)

    return operator(run, "axis")


def reduction(function: Callable[..., Tensor]) -> Operator:
    """Make a reduction of `function(values, axes, keepdim=...)`."""

    def reduce(inputs: Inputs, attributes: Attributes) -> Tensor:
        axes = axes_of(inputs, attributes)
        if not axes and attributes.get("noop_with_empty_axes", 0):
            return function(inputs[0][None], [0], keepdim=False)  # each value by itself
        axes = axes or list(range(inputs[0].ndim))
        return function(inputs[0], axes, keepdim=bool(attributes.get("keepdims", 1)))

    return operator(reduce, "axes", "keepdims", "noop_with_empty_axes")


def product(values: Tensor, axes: list[int], *, keepdim: bool) -> Tensor:
    """Multiply values."""
    for axis in sorted((axis % values.ndim for axis in axes), reverse=True):
        values = values.prod(axis, keepdim=keepdim)
    return values


def lp_norm(inputs: Inputs, attributes: Attributes) -> Tensor:
    """Divide by the norm along an axis."""
    norm = torch.linalg.vector_norm(inputs[0], attributes.get("p", 2), dim=attributes.get("axis", -1), keepdim=True)
    return torch.where(norm == 0, 0.0, inputs[0] / norm)


def layer_norm(inputs: Inputs, attributes: Attributes) -> Tensor:
    """Normalise over the axes from `axis` on."""
    values, scale, bias = (*inputs, None)[:3]
    return F.layer_norm(values, values.shape[attributes.get("axis", -1) :], scale, bias, attributes.get("epsilon", 1e-5))


def batch_norm(inputs: Inputs, attributes: Attributes) -> Tensor:
    """Normalise each channel by what it had in training."""
    values, scale, bias, mean, variance = inputs
    factor = scale * (variance + attributes.get("epsilon", 1e-5)).rsqrt()
    sides = [-1] + [1] * (values.ndim - 2)
    return values * factor.reshape(sides) + (bias - mean * factor).reshape(sides)  # type: ignore[no-any-return]


def group_norm(inputs: Inputs, attributes: Attributes) -> Tensor:
    """Normalise groups of channels; the scale is that of each channel or (before opset 21) of each group."""
    values, scale, bias = inputs
    groups = attributes["num_groups"]
    if len(scale) != values.shape[1]:
        scale, bias = (part.repeat_interleave(values.shape[1] // groups) for part in (scale, bias))
    return torch.group_norm(values, groups, scale, bias, attributes.get("epsilon", 1e-5))


def instance_norm(inputs: Inputs, attributes: Attributes) -> Tensor:
    """Normalise each channel of each image."""
    values, scale, bias = inputs
    return torch.group_norm(values, values.shape[1], scale, bias, attributes.get("epsilon", 1e-5))


def quantise(inputs: Inputs, attributes: Attributes) -> Tensor:
    """Round to steps; gradients pass as if it did not, where nothing is cut off."""
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


def dequantise(inputs: Inputs, attributes: Attributes) -> Tensor:
    """Return what steps stand for."""
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
