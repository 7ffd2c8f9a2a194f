"""From the graph of an ONNX file to that of a bundle: bytes of images in, labels out, what the file computes between."""

from collections import Counter
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, compose, helper, numpy_helper, version_converter

from ddcat.choices import Precision
from ddcat.error_text import first_line
from ddcat.manifest import Sizes
from ddcat_export.errors import ExportError
from ddcat_export.graph_checks import ANY_SIZE, LOGITS, OPSET, check_form, check_graph
from ddcat_export.onnx_export import spell_out_norms, strip
from ddcat_export.onnx_file import OnnxFile

__all__ = ["contract_graph"]

_MODEL = "model/"  # before every name of the file, so that none is one of ours


def contract_graph(
    file: OnnxFile, *, sizes: Sizes | None, logits: bool, confidence: bool, precision: Precision = "fp32"
) -> bytes:
    """
    Put what a bundle promises around the graph of a file.

    Before it the image is divided by 255, normalised and, where the file wants it, transposed; behind it the logits are resized
    to the image (linearly, corners as half pixels), and the largest one is chosen.

    Parameters
    ----------
    file : OnnxFile
    sizes : tuple of (height, width), or None
        As for `ddcat_export.onnx_export.build_graph`.
    logits, confidence : bool
        Add the logits as the file gives them, and the probability of each label, to the outputs.
    precision : "fp32" or "int8"
        int8 where the file is quantised.

    Returns
    -------
    bytes
        An ONNX file of `OPSET`.

    Raises
    ------
    ExportError
        Where the graph cannot be brought to that opset, or is not one that all runtimes read alike.
    """
    inner = _inner(file, precision)
    size = sizes[0] if sizes is not None and len(sizes) == 1 else None
    height, width = size or ("height", "width")
    shape: list[int | str | None] = ["batch", height, width]
    constants: dict[str, Any] = {}

    def constant(name: str, value: Any) -> str:
        constants[name] = np.asarray(value)
        return name

    before = [
        _node("Cast", ["image"], "values", to=TensorProto.FLOAT),
        _node("Div", ["values", constant("levels", np.float32(255))], "unit"),
        _node("Sub", ["unit", constant("mean", np.array(file.mean, np.float32))], "centred"),  # over the last axis: channels
        _node("Div", ["centred", constant("std", np.array(file.std, np.float32))], "fed" if file.images.last else "scaled"),
        *([] if file.images.last else [_node("Transpose", ["scaled"], "fed", perm=[0, 3, 1, 2])]),
    ]
    given = _MODEL + file.logits.name
    after = [
        _node("Transpose", [given], LOGITS, perm=[0, 3, 1, 2])
        if file.logits.last
        else _node("Identity", [given], LOGITS),
        _node("Shape", ["image"], "sides", start=1, end=3),
        _node("Shape", [LOGITS], "planes", start=0, end=2),
        _node("Concat", ["planes", "sides"], "full_shape", axis=0),
        _node(
            "Resize", [LOGITS, "", "", "full_shape"], "full", mode="linear", coordinate_transformation_mode="half_pixel",
        ),
        _node("Reshape", ["full", constant("flat", np.array([0, 0, -1]))], "rows"),
        _node("ArgMax", ["rows"], "chosen", axis=1, keepdims=0),
        _node("Shape", ["image"], "labels_shape", start=0, end=3),
        _node("Reshape", ["chosen", "labels_shape"], "map"),
        _node("Cast", ["map"], "map_values", to=TensorProto.FLOAT),  # TensorRT casts uint8 from floats only
        _node("Cast", ["map_values"], "labels", to=TensorProto.UINT8),
    ]  # fmt: skip
    outputs = [
        helper.make_tensor_value_info("labels", TensorProto.UINT8, shape),
        helper.make_tensor_value_info(LOGITS, TensorProto.FLOAT, ["batch", len(file.classes), "logits_height", "logits_width"]),
    ]
    if confidence:
        classes = constant("classes", np.array([1]))
        after += [
            _node("ReduceMax", ["full", classes], "highest", keepdims=1),
            _node("Sub", ["full", "highest"], "below"),
            _node("Exp", ["below"], "exponentials"),
            _node("ReduceSum", ["exponentials", classes], "sum", keepdims=0),
            _node("Reciprocal", ["sum"], "confidence"),
        ]
        outputs.append(helper.make_tensor_value_info("confidence", TensorProto.FLOAT, shape))
    graph = helper.make_graph(
        [*before, *inner.node, *after],
        "main",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, [*shape, 3])],
        outputs,
        [*inner.initializer, *(numpy_helper.from_array(value, name) for name, value in constants.items())],
    )
    for node in graph.node:
        node.input[:] = ["fed" if name == _MODEL + file.images.name else name for name in node.input]
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    model = _simplified(model) if precision == "fp32" else model
    if not logits:
        del model.graph.output[1]  # the tensor stays, under its name
    check_form(model, len(file.classes), size, logits=logits, confidence=confidence)
    check_graph(model, precision)
    content: bytes = model.SerializeToString(deterministic=True)
    return content


def _node(operator: str, inputs: list[str], output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(operator, inputs, [output], output, **attributes)


def _inner(file: OnnxFile, precision: Precision) -> onnx.GraphProto:
    """Return the file's own graph in our opset, with names that are its own."""
    model = file.model
    own = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    if own != OPSET:
        try:
            model = version_converter.convert_version(model, OPSET)
        except Exception as cause:  # its exceptions share no base
            raise ExportError(
                f"{file.path} has opset {own}, and ONNX cannot convert it to {OPSET}: {first_line(cause)}; export it again "
                f"with opset_version={OPSET}"
            ) from cause
    graph: onnx.GraphProto = compose.add_prefix(model, _MODEL).graph
    strip(graph)
    named: Counter[str] = Counter()
    for node in graph.node:  # int8 knows layers by their names
        stem = node.name or f"{_MODEL}{node.op_type.lower()}"
        named[stem] += 1
        node.name = stem if named[stem] == 1 else f"{stem}:{named[stem]}"
    return graph


def _simplified(model: onnx.ModelProto) -> onnx.ModelProto:
    """Fold constants, and batch norms into the convolutions before them; spell out those that are left."""
    from onnxscript import optimizer, rewriter  # noqa: PLC0415 -- slow to import
    from onnxscript.rewriter.rules import common  # noqa: PLC0415

    folded = optimizer.optimize(model, input_size_limit=ANY_SIZE, output_size_limit=ANY_SIZE)
    folded = rewriter.rewrite(folded, [common.fuse_batchnorm_into_conv_rule, common.fuse_batchnorm_into_conv_transpose_rule])
    spell_out_norms(folded)
    strip(folded)
    return folded
