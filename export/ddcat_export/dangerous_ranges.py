"""Find the nodes of a graph whose values or weights fp16 or bf16 would hold badly or not at all."""

from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import helper, numpy_helper

from ddcat.choices import Precision
from ddcat.engines.base import Images
from ddcat.manifest_precision import KeptNode
from ddcat_export.engines.onnxruntime_calibration import measure_magnitudes
from ddcat_export.errors import ExportError
from ddcat_export.precision_cast import DTYPES, castable
from ddcat_export.progress import Progress, with_progress

__all__ = ["dangerous"]

# Sums over axes, which some kernels accumulate in the type. Those of products are accumulated in fp32 by matrix units.
_SUMS = ("GlobalAveragePool", "ReduceL1", "ReduceMean", "ReduceSum")
_REACH = 0.5  # of the largest number of the type: other images have larger values than those that were measured


def dangerous(
    graph: bytes, precision: Precision, images: Sequence[Images], *, progress: Progress = lambda stage: None
) -> tuple[KeptNode, ...]:
    """
    Find the nodes that must stay fp32: half of the largest number of the type is the limit for what they read, give and sum.

    Parameters
    ----------
    graph : bytes
        A typed fp32 graph of `build_graph`.
    precision : "fp16" or "bf16"
    images : sequence of (N, H, W, 3) uint8
        Clean and attacked ones, on which magnitudes are measured by ONNX Runtime.
    progress : callable, optional
        Called with the current stage.

    Returns
    -------
    tuple of KeptNode
        In the order of the graph, for "weight" or for "range".

    Raises
    ------
    ExportError
        Where a value of the fp32 graph is not finite.
    """
    model = onnx.load_model_from_string(graph)
    nodes = castable(model)
    limit = _REACH * float(ml_dtypes.finfo(DTYPES[precision]).max)  # type: ignore[no-untyped-call]
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    sums = _add_sums(model, nodes)
    operators = sorted({node.op_type for node in nodes} | ({"ReduceSum"} if sums else set()))
    batches = with_progress(images, "measuring ranges on images", progress)
    magnitudes = measure_magnitudes(model.SerializeToString(), operators, batches)
    found = []
    for node in nodes:
        read = [name for name in node.input if name in weights]
        weight = max((_largest(weights[name]) for name in read), default=0.0)
        tensors = [*(name for name in node.input if name not in weights), *node.output, sums.get(node.name, "")]
        value = max((magnitudes[name] for name in tensors if name in magnitudes), default=0.0)
        if not np.isfinite(value):
            raise ExportError(f"the network itself computes values that are not finite at {node.name}: use another checkpoint")
        if weight > limit:
            found.append(KeptNode(name=node.name, reason="weight", largest=weight))
        elif value > limit:
            found.append(KeptNode(name=node.name, reason="range", largest=value))
    return tuple(found)


def _largest(tensor: onnx.TensorProto) -> float:
    values: Any = numpy_helper.to_array(tensor)
    return float(np.abs(values).max()) if values.size and values.dtype == np.float32 else 0.0


def _add_sums(model: onnx.ModelProto, nodes: Sequence[onnx.NodeProto]) -> dict[str, str]:
    """Add to each sum over axes the sum of magnitudes, which no partial sum exceeds; name its tensor by the sum's node."""
    names = {}
    for node in nodes:
        if node.op_type not in _SUMS:
            continue
        magnitude, total = f"{node.output[0]}_magnitude", f"{node.output[0]}_magnitudes"
        model.graph.node.append(helper.make_node("Abs", [node.input[0]], [magnitude], magnitude))
        if node.op_type == "GlobalAveragePool":
            axes = f"{total}_axes"
            model.graph.initializer.append(numpy_helper.from_array(np.array([2, 3]), axes))
            added = helper.make_node("ReduceSum", [magnitude, axes], [total], total)
        else:
            added = helper.make_node("ReduceSum", [magnitude, *node.input[1:]], [total], total)
            added.attribute.extend(node.attribute)
        model.graph.node.append(added)
        names[node.name] = total
    return names
