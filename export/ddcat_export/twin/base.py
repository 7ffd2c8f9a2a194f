"""The base of every operator of the differentiable executor."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from onnx import TensorProto, numpy_helper
from torch import Tensor

__all__ = ["DTYPES", "Attributes", "Inputs", "NotSupportedError", "Operator", "as_tensor", "operator"]

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
    several : bool
        True if `run` returns all outputs. Of other operators only the first is computed, and no other may be read.
    before : (int, Operator), optional
        The opset that changed its meaning, and what it was before.
    """

    run: Callable[[Inputs, Attributes], Tensor | tuple[Tensor, ...]]
    attributes: frozenset[str]
    several: bool = False
    before: "tuple[int, Operator] | None" = None


def operator(
    run: Callable[[Inputs, Attributes], Any],
    *attributes: str,
    several: bool = False,
    before: tuple[int, Operator] | None = None,
) -> Operator:
    """Make an operator that reads these attributes."""
    return Operator(run, frozenset(attributes), several, before)


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
