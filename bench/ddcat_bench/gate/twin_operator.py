"""The base of every operator of the differentiable executor."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from onnx import TensorProto
from torch import Tensor

__all__ = ["DTYPES", "Attributes", "Inputs", "NotSupportedError", "Operator", "operator"]

Inputs = Sequence[Any]  # a tensor for each input of the node, None where one is left out
Attributes = Mapping[str, Any]

# What torch computes with. Other types (float8, int4, uint16, strings, ...) are refused where a value has them.
DTYPES = {
    TensorProto.FLOAT: torch.float32, TensorProto.FLOAT16: torch.float16, TensorProto.BFLOAT16: torch.bfloat16,
    TensorProto.DOUBLE: torch.float64, TensorProto.INT64: torch.int64, TensorProto.INT32: torch.int32,
    TensorProto.INT16: torch.int16, TensorProto.INT8: torch.int8, TensorProto.UINT8: torch.uint8, TensorProto.BOOL: torch.bool,
}  # fmt: skip


class NotSupportedError(Exception):
    """A form of an operator that the executor does not compute; the text names the form."""


class Operator(NamedTuple):
    """
    An operator of ONNX in torch.

    Attributes
    ----------
    run : callable
        Takes the inputs of a node and its attributes; returns its output, or a tuple where the operator has several.
    attributes : frozenset of str
        The attributes that `run` reads. A node may have others only at their default: what nobody reads must not matter.
    """

    run: Callable[[Inputs, Attributes], Tensor | tuple[Tensor, ...]]
    attributes: frozenset[str]


def operator(run: Callable[[Inputs, Attributes], Any], *attributes: str) -> Operator:
    """Make an operator that reads these attributes."""
    return Operator(run, frozenset(attributes))
