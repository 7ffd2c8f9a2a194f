"""Graphs of an older version of ONNX's operators, for runtimes that do not read the newest."""

import onnx
from onnx import version_converter

__all__ = ["lower"]


def lower(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """
    Convert a graph to an older opset, without changing what it computes.

    Parameters
    ----------
    model : ModelProto
        With operators of ONNX alone.
    opset : int
        Older than the graph's.

    Raises
    ------
    Exception
        Of ONNX, where an operator is none of that opset; its exceptions share no base.
    """
    lowered = version_converter.convert_version(model, opset)
    onnx.checker.check_model(lowered, full_check=True)
    lowered.ir_version = min(lowered.ir_version, 8 if opset <= 17 else 10)  # of the ONNX that had this opset first
    return lowered
