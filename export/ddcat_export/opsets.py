"""Convert graphs to older ONNX opsets, for runtimes that do not read `OPSET`."""

import onnx
from onnx import version_converter

from ddcat.choices import Precision
from ddcat_export.errors import ExportError
from ddcat_export.graph_checks import OPSET

__all__ = ["check_opset", "lower", "lowered", "opset_of"]

_OLDEST = 17  # what TensorRT 8.6 reads; none of our runtimes needs an older one


def check_opset(opset: int, precision: Precision) -> None:
    """
    Refuse an opset that no graph of ours can have.

    Parameters
    ----------
    opset : int
    precision : Precision
        Precision of the graph, which may differ from that of its engine.

    Raises
    ------
    ExportError
    """
    if not _OLDEST <= opset <= OPSET:
        raise ExportError(f"--opset {opset}: expected {_OLDEST} to {OPSET}")
    if precision == "bf16" and opset < OPSET:
        raise ExportError(f"--opset {opset}: convolutions take bfloat16 from opset {OPSET} on; leave --opset out")


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
        Of ONNX, where an operator does not exist in that opset; its exceptions share no base.
    """
    converted = version_converter.convert_version(model, opset)
    onnx.checker.check_model(converted, full_check=True)
    converted.ir_version = min(converted.ir_version, 8 if opset <= 17 else 10)  # of the ONNX that had this opset first
    return converted


def lowered(content: bytes, opset: int) -> bytes:
    """
    Convert a graph of a newer opset, to the same bytes for the same arguments.

    Raises
    ------
    ExportError
        If the graph needs a newer opset: naming it, and the operators that need it.
    """
    if opset_of(content) <= opset:
        return content
    model = onnx.load_model_from_string(content)
    try:
        changed: bytes = lower(model, opset).SerializeToString(deterministic=True)
    except Exception as cause:  # ONNX's exceptions share no base
        needed = next(version for version in range(opset + 1, OPSET + 1) if version == OPSET or _reaches(model, version))
        versions = {node.op_type: _since(node, needed) for node in model.graph.node}
        operators = ", ".join(sorted(name for name, version in versions.items() if version == max(versions.values())))
        raise ExportError(f"--opset {opset}: the graph needs opset {needed} for {operators}: use --opset {needed}") from cause
    return changed


def _reaches(model: onnx.ModelProto, opset: int) -> bool:
    """Return True if a graph can be converted to an opset."""
    try:
        lower(model, opset)
    except Exception:  # ONNX's exceptions share no base
        return False
    return True


def _since(node: onnx.NodeProto, opset: int) -> int:
    """Return the version of an operator in an opset."""
    version: int = onnx.defs.get_schema(node.op_type, opset).since_version
    return version


def opset_of(content: bytes) -> int:
    """Read the opset of a graph."""
    return next(int(entry.version) for entry in onnx.load_model_from_string(content).opset_import if not entry.domain)
