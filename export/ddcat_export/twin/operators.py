"""
The operators of ONNX that segmentation models are made of, in torch and differentiable: one table.

Each function takes the inputs of a node, None where one is left out, and its attributes, and returns its output. Gradients
pass through the rounding of quantisation unchanged. Values beyond its range get no gradient, because there the engine's output
does not change either.

The forms that a function does not compute raise NotSupportedError; the official node cases of ONNX hold it to that.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from ddcat_export.twin import shapes, values, windows
from ddcat_export.twin.base import Operator, operator
from ddcat_export.twin.resize import resize

__all__ = ["OPERATORS"]

_WINDOWS = "auto_pad", "dilations", "kernel_shape", "pads", "strides"


def _of_one(function: Callable[[Any], Any]) -> Operator:
    return operator(lambda inputs, attributes: function(inputs[0]))


def _of_two(function: Callable[[Any, Any], Any]) -> Operator:
    return operator(lambda inputs, attributes: function(inputs[0], inputs[1]))


def _of_all(function: Callable[[Any, Any], Any]) -> Operator:
    return operator(lambda inputs, attributes: functools.reduce(function, inputs))


OPERATORS: dict[str, Operator] = {
    "Abs": _of_one(torch.abs),
    "Add": _of_two(torch.add),
    "And": _of_two(torch.logical_and),
    "ArgMax": operator(
        lambda inputs, attributes: inputs[0].argmax(attributes.get("axis", 0), bool(attributes.get("keepdims", 1))),
        "axis", "keepdims",
    ),
    "Atan": _of_one(torch.atan),
    "AveragePool": operator(windows.average_pool, *_WINDOWS, "ceil_mode", "count_include_pad"),
    "BatchNormalization": operator(values.batch_norm, "epsilon", "momentum"),
    "Cast": operator(values.cast, "to"),
    "CastLike": _of_two(lambda given, like: given.to(like.dtype)),
    "Ceil": _of_one(torch.ceil),
    "Celu": operator(lambda inputs, attributes: F.celu(inputs[0], attributes.get("alpha", 1.0)), "alpha"),
    "Clip": operator(values.clip),
    "Concat": operator(lambda inputs, attributes: torch.cat(list(inputs), attributes["axis"]), "axis"),
    "Constant": operator(shapes.constant, "value", "value_int", "value_ints", "value_float", "value_floats"),
    "ConstantOfShape": operator(shapes.constant_of_shape, "value"),
    "Conv": operator(windows.conv, *_WINDOWS, "group"),
    "ConvTranspose": operator(windows.conv_transpose, *_WINDOWS, "group", "output_padding"),
    "Cos": _of_one(torch.cos),
    "CumSum": operator(values.cum_sum, "exclusive", "reverse"),
    "DepthToSpace": operator(shapes.depth_to_space, "blocksize", "mode"),
    "DequantizeLinear": operator(values.dequantise, "axis"),
    "Div": _of_two(values.divide),
    "Dropout": operator(values.dropout, "ratio", "seed"),
    "Einsum": operator(lambda inputs, attributes: torch.einsum(attributes["equation"].decode(), *inputs), "equation"),
    "Elu": operator(lambda inputs, attributes: F.elu(inputs[0], attributes.get("alpha", 1.0)), "alpha"),
    "Equal": _of_two(torch.eq),
    "Erf": _of_one(torch.erf),
    "Exp": _of_one(torch.exp),
    "Expand": operator(shapes.expand),
    "Flatten": operator(shapes.flatten, "axis"),
    "Floor": _of_one(torch.floor),
    "Gather": operator(shapes.gather, "axis"),
    "GatherElements": operator(shapes.gather_elements, "axis"),
    "GatherND": _of_two(lambda given, index: given[tuple(index.unbind(-1))]),
    "Gelu": operator(
        lambda inputs, attributes: F.gelu(inputs[0], approximate=attributes.get("approximate", b"none").decode()), "approximate"
    ),
    "Gemm": operator(values.gemm, "alpha", "beta", "transA", "transB"),
    "GlobalAveragePool": _of_one(lambda maps: maps.mean(tuple(range(2, maps.ndim)), keepdim=True)),
    "GlobalMaxPool": _of_one(lambda maps: maps.amax(tuple(range(2, maps.ndim)), keepdim=True)),
    "Greater": _of_two(torch.gt),
    "GreaterOrEqual": _of_two(torch.ge),
    "GridSample": operator(windows.grid_sample, "align_corners", "mode", "padding_mode"),
    "GroupNormalization": operator(values.group_norm, "epsilon", "num_groups"),
    "HardSigmoid": operator(
        lambda inputs, attributes: (attributes.get("alpha", 0.2) * inputs[0] + attributes.get("beta", 0.5)).clamp(0, 1),
        "alpha", "beta",
    ),
    "HardSwish": _of_one(F.hardswish),
    "Identity": _of_one(lambda given: given),
    "InstanceNormalization": operator(values.instance_norm, "epsilon"),
    "IsInf": _of_one(torch.isinf),
    "IsNaN": _of_one(torch.isnan),
    "LayerNormalization": operator(values.layer_norm, "axis", "epsilon"),
    "LeakyRelu": operator(lambda inputs, attributes: F.leaky_relu(inputs[0], attributes.get("alpha", 0.01)), "alpha"),
    "Less": _of_two(torch.lt),
    "LessOrEqual": _of_two(torch.le),
    "Log": _of_one(torch.log),
    "LogSoftmax": operator(
        lambda inputs, attributes: inputs[0].log_softmax(attributes.get("axis", -1)), "axis",
        before=(13, values.flat(torch.log_softmax)),
    ),
    "LpNormalization": operator(values.lp_norm, "axis", "p"),
    "MatMul": _of_two(torch.matmul),
    "Max": _of_all(torch.maximum),
    "MaxPool": operator(windows.max_pool, *_WINDOWS, "ceil_mode"),
    "Mean": operator(lambda inputs, attributes: functools.reduce(torch.add, inputs) / len(inputs)),
    "Min": _of_all(torch.minimum),
    "Mish": _of_one(F.mish),
    "Mod": operator(values.mod, "fmod"),
    "Mul": _of_two(torch.mul),
    "Neg": _of_one(torch.neg),
    "NonZero": _of_one(lambda given: given.nonzero().T),
    "Not": _of_one(torch.logical_not),
    "Or": _of_two(torch.logical_or),
    "PRelu": _of_two(lambda given, slope: torch.where(given < 0, given * slope, given)),
    "Pad": operator(windows.pad, "mode"),
    "Pow": _of_two(lambda base, exponent: torch.pow(base, exponent).to(base.dtype)),
    "QuantizeLinear": operator(values.quantise, "axis", "output_dtype"),
    "Range": operator(
        lambda inputs, attributes: torch.arange(*(value.item() for value in inputs), dtype=inputs[0].dtype)
    ),
    "Reciprocal": _of_one(torch.reciprocal),
    "ReduceL1": values.reduction(lambda given, axes, keepdim: given.abs().sum(axes, keepdim=keepdim)),
    "ReduceL2": values.reduction(
        lambda given, axes, keepdim: torch.linalg.vector_norm(given, dim=axes, keepdim=keepdim)
    ),
    "ReduceLogSum": values.reduction(lambda given, axes, keepdim: given.sum(axes, keepdim=keepdim).log()),
    "ReduceLogSumExp": values.reduction(torch.logsumexp),
    "ReduceMax": values.reduction(torch.amax),
    "ReduceMean": values.reduction(torch.mean),
    "ReduceMin": values.reduction(torch.amin),
    "ReduceProd": values.reduction(values.product),
    "ReduceSum": values.reduction(torch.sum),
    "ReduceSumSquare": values.reduction(lambda given, axes, keepdim: given.square().sum(axes, keepdim=keepdim)),
    "Relu": _of_one(F.relu),
    "Reshape": operator(shapes.reshape, "allowzero"),
    "Resize": operator(
        resize, "axes", "coordinate_transformation_mode", "cubic_coeff_a", "exclude_outside", "mode", "nearest_mode",
        "extrapolation_value",  # which only the corners of tf_crop_and_resize need, and they are refused
    ),
    "Round": _of_one(torch.round),
    "ScatterElements": operator(shapes.scatter_elements, "axis"),
    "ScatterND": operator(
        lambda inputs, attributes: inputs[0].index_put(tuple(inputs[1].unbind(-1)), inputs[2])
    ),
    "Selu": operator(
        lambda inputs, attributes: attributes.get("gamma", 1.0507009873554805) * F.elu(
            inputs[0], attributes.get("alpha", 1.6732632423543772)
        ),
        "alpha", "gamma",
    ),
    "Shape": operator(shapes.shape, "start", "end"),
    "Sigmoid": _of_one(torch.sigmoid),
    "Sign": _of_one(torch.sign),
    "Sin": _of_one(torch.sin),
    "Size": _of_one(lambda given: torch.tensor(given.numel())),
    "Slice": operator(shapes.slice_),
    "Softmax": operator(
        lambda inputs, attributes: inputs[0].softmax(attributes.get("axis", -1)), "axis",
        before=(13, values.flat(torch.softmax)),
    ),
    "Softplus": _of_one(F.softplus),
    "Softsign": _of_one(F.softsign),
    "SpaceToDepth": operator(shapes.space_to_depth, "blocksize"),
    "Split": operator(shapes.split, "axis", "num_outputs", "split", several=True),
    "Sqrt": _of_one(torch.sqrt),
    "Squeeze": operator(shapes.squeeze, "axes"),
    "Sub": _of_two(torch.sub),
    "Sum": _of_all(torch.add),
    "Swish": operator(
        lambda inputs, attributes: inputs[0] * torch.sigmoid(attributes.get("alpha", 1.0) * inputs[0]), "alpha"
    ),
    "Tan": _of_one(torch.tan),
    "Tanh": _of_one(torch.tanh),
    "ThresholdedRelu": operator(
        lambda inputs, attributes: F.threshold(inputs[0], attributes.get("alpha", 1.0), 0.0), "alpha"
    ),
    "Tile": operator(lambda inputs, attributes: inputs[0].repeat(inputs[1].tolist())),
    "TopK": operator(shapes.top_k, "axis", "largest", "sorted", several=True),
    "Transpose": operator(shapes.transpose, "perm"),
    "Trilu": operator(shapes.trilu, "upper"),
    "Unsqueeze": operator(shapes.unsqueeze, "axes"),
    "Where": operator(lambda inputs, attributes: torch.where(inputs[0], inputs[1], inputs[2])),
    "Xor": _of_two(torch.logical_xor),
}  # fmt: skip
