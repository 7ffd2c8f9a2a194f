"""fp16 and bf16 graphs: what is typed anew, what stays, and that it is still the network."""

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime  # type: ignore[import-untyped]
import pytest
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator

from ddcat.bundle import Bundle
from ddcat.choices import Precision
from ddcat_export.errors import ExportError
from ddcat_export.graph_checks import check_graph, types_of
from ddcat_export.parity import FP16_TOLERANCE, check_parity, sample_images, shapes_of
from ddcat_export.precision_cast import cast_graph
from ddcat_train.checkpoints import load_checkpoint

KINDS: dict[Precision, tuple[int, Any]] = {
    "fp16": (TensorProto.FLOAT16, np.float16),
    "bf16": (TensorProto.BFLOAT16, ml_dtypes.bfloat16),
}


@pytest.fixture(scope="module")
def fp32(bundle: Bundle) -> bytes:
    return bundle.files["model.onnx"]


@pytest.mark.parametrize("precision", KINDS)
def test_weights_and_maps_have_the_type_and_the_ends_stay(fp32: bytes, precision: Precision) -> None:
    kind, dtype = KINDS[precision]
    before, model = (onnx.load_model_from_string(content) for content in (fp32, cast_graph(fp32, precision)))
    types = types_of(model)
    assert {t.name: types[t.name] for t in (*model.graph.input, *model.graph.output)} == {
        "image": TensorProto.UINT8, "labels": TensorProto.UINT8, "logits": TensorProto.FLOAT
    }  # fmt: skip
    for node in model.graph.node:
        if node.op_type in ("Conv", "Relu", "MatMul"):
            assert {types[name] for name in (*node.input, *node.output)} == {kind}, node.name
        if node.op_type in ("Resize", "ArgMax"):
            assert types[node.input[0]] == TensorProto.FLOAT
    first = next(node for node in model.graph.node if node.op_type == "Conv")
    cast = next(node for node in model.graph.node if first.input[0] in node.output)
    assert (cast.op_type, types[cast.input[0]]) == ("Cast", TensorProto.FLOAT)  # normalised in fp32

    old = {tensor.name: numpy_helper.to_array(tensor) for tensor in before.graph.initializer}
    new = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    convolutions = [node for node in before.graph.node if node.op_type == "Conv"]
    for node in convolutions:
        np.testing.assert_array_equal(new[f"{node.input[1]}_{precision}"], old[node.input[1]].astype(dtype))
        assert node.input[1] not in new  # no fp32 copy is left
    assert len(convolutions) > 10


def test_fp16_is_the_network(run: Path, fp32: bytes) -> None:
    found = check_parity(
        cast_graph(fp32, "fp16"), load_checkpoint(run).segmenter(), shapes_of(None)[:4], tolerance=FP16_TOLERANCE
    )
    assert 1e-5 < found.logit_error < FP16_TOLERANCE
    with pytest.raises(ExportError, match="differs from the network"):
        check_parity(cast_graph(fp32, "fp16"), load_checkpoint(run).segmenter(), shapes_of(None)[:4], tolerance=1e-5)


@pytest.mark.parametrize("precision", KINDS)
def test_onnx_itself_computes_what_the_fp32_graph_does(fp32: bytes, precision: Precision) -> None:
    images = sample_images((1, 33, 40), 1)
    session = onnxruntime.InferenceSession(fp32, providers=["CPUExecutionProvider"])
    (wanted,) = session.run(["logits"], {"image": images})
    evaluator = ReferenceEvaluator(onnx.load_model_from_string(cast_graph(fp32, precision)))
    (found,) = evaluator.run(["logits"], {"image": images})
    error = float(np.abs(found.astype(np.float32) - wanted).max() / wanted.std())
    bits = {"fp16": 11, "bf16": 8}[precision]
    assert 2.0 ** -(bits + 4) < error < 32 * 2.0**-bits  # roundings of that many bits, in a dozen layers


@pytest.mark.parametrize("precision", KINDS)
def test_the_same_graph_gives_the_same_bytes(fp32: bytes, precision: Precision) -> None:
    assert cast_graph(fp32, precision) == cast_graph(fp32, precision)


def test_a_weight_that_is_too_large_is_named(fp32: bytes) -> None:
    model = onnx.load_model_from_string(fp32)
    name = next(node for node in model.graph.node if node.op_type == "Conv").input[1]
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    values = numpy_helper.to_array(tensor).copy()
    values.flat[0] = 7e4
    tensor.CopyFrom(numpy_helper.from_array(values, name))
    content = model.SerializeToString()
    with pytest.raises(ExportError, match=rf"{name} has a weight of 7e\+04, which fp16 cannot hold"):
        cast_graph(content, "fp16")
    cast_graph(content, "bf16")


def test_a_layer_of_another_type_is_refused(fp32: bytes) -> None:
    model = onnx.load_model_from_string(cast_graph(fp32, "fp16"))
    with pytest.raises(ExportError, match=r"tensor .* is float16 in a graph at fp32: use bool, float, int32, int64, uint8"):
        check_graph(model, "fp32")
    with pytest.raises(ExportError, match=r"\(Conv\) has the types float in a graph at fp16"):
        check_graph(onnx.load_model_from_string(fp32), "fp16")
