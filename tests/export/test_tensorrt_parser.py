"""What we export is what NVIDIA's own parser takes; and what we say of TensorRT beside it is what it does."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from onnx.backend.test.loader import load_model_tests
from typer.testing import CliRunner

from ddcat.bundle import Bundle
from ddcat.choices import Precision
from ddcat.engines import import_for
from ddcat.engines.errors import EngineError
from ddcat_export.cli import app
from ddcat_export.engines.tensorrt.graph import adapt, silent_changes
from ddcat_export.errors import ExportError
from ddcat_export.onnx_export import build_graph
from ddcat_export.parity import sample_images
from ddcat_export.precision_cast import cast_graph, castable
from ddcat_export.quantise import quantise, quantised_tensors
from ddcat_train.checkpoints import load_checkpoint

trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")

SIZE = (65, 97)


def nodes_not_taken(content: bytes) -> list[str]:
    checks: Any = import_for("trt-rtx", "ddcat_export.engines.tensorrt.parser_check")
    refused: list[str] = checks.check_nodes(content).refused
    return refused


@pytest.fixture(scope="module", params=["any size", pytest.param("one size", marks=pytest.mark.slow)])
def graph(request: pytest.FixtureRequest, bundle: Bundle, make_run: Callable[..., Path]) -> bytes:
    if request.param == "any size":
        return bundle.files["model.onnx"]
    run = make_run("parsed", method="undefended", context="aspp")
    return build_graph(load_checkpoint(run).segmenter(), sizes=(SIZE,), logits=True, confidence=True)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_our_graphs_are_taken(graph: bytes, precision: Precision) -> None:
    typed = graph if precision == "fp32" else cast_graph(graph, precision)
    assert not nodes_not_taken(adapt(typed, "TensorRT", 22, int8=False))


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_graphs_with_nodes_in_fp32_are_taken(graph: bytes, precision: Precision) -> None:
    nodes = [node.name for node in castable(onnx.load_model_from_string(graph))]
    for every in (2, 3):
        typed = cast_graph(graph, precision, fp32=nodes[::every])
        assert not nodes_not_taken(adapt(typed, "TensorRT", 22, int8=False))


@pytest.mark.parametrize("opset", [17, 22])
def test_an_adapted_graph_computes_the_same(graph: bytes, opset: int) -> None:
    fitted = adapt(graph, "TensorRT", opset, int8=False)
    images = sample_images((2, *SIZE), 0)
    answers = [
        onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"]).run(None, {"image": images})
        for content in (fitted, graph)
    ]
    for ours, theirs in zip(*answers, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_our_int8_is_taken_in_its_signed_form_alone(graph: bytes) -> None:
    ranges = dict.fromkeys(quantised_tensors(graph), 4.0)
    assert not nodes_not_taken(adapt(quantise(graph, ranges), "TensorRT", 22, int8=True))
    unsigned = nodes_not_taken(quantise(graph, ranges, unsigned=True))
    assert any("Non-zero zero point is not supported" in line for line in unsigned)
    assert any("it quantises to uint8, which TensorRT reads as int8" in line for line in unsigned)


def test_a_node_of_ours_that_is_not_taken_is_named(graph: bytes, tmp_path: Path) -> None:
    model = onnx.load_model_from_string(graph)
    resize = next(node for node in model.graph.node if node.op_type == "Resize")
    attributes = [attribute for attribute in resize.attribute if attribute.name != "antialias"]
    del resize.attribute[:]
    resize.attribute.extend([*attributes, helper.make_attribute("antialias", 1)])
    (tmp_path / "wrong.onnx").write_bytes(model.SerializeToString())
    (tmp_path / "right.onnx").write_bytes(graph)
    said = CliRunner().invoke(app, [str(tmp_path / "wrong.onnx"), "--check", "trt"])
    assert said.stdout.startswith(f"{resize.name} (Resize): ")
    assert isinstance(said.exception, ExportError)
    assert f"does not accept 1 of its {len(model.graph.node)} nodes" in str(said.exception)
    said = CliRunner().invoke(app, [str(tmp_path / "right.onnx"), "--check", "trt"])
    assert said.exit_code == 0
    assert f"right.onnx: TensorRT for RTX {trt.__version__} accepts all of its {len(model.graph.node)} nodes" in said.stdout


def test_what_cannot_be_checked(tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("no graph")
    for name, error, reason in (
        ("text.onnx", EngineError, "it is not an ONNX file"),
        ("absent.onnx", ExportError, "cannot be read"),
    ):
        said = CliRunner().invoke(app, [str(tmp_path / name), "--check", "trt"])
        assert isinstance(said.exception, error)
        assert reason in str(said.exception)


TYPES = {
    "FLOAT": TensorProto.FLOAT, "HALF": TensorProto.FLOAT16, "BF16": TensorProto.BFLOAT16, "INT8": TensorProto.INT8,
    "INT32": TensorProto.INT32, "INT64": TensorProto.INT64, "BOOL": TensorProto.BOOL, "UINT8": TensorProto.UINT8,
    "FP8": TensorProto.FLOAT8E4M3FN, "INT4": TensorProto.INT4, "FP4": TensorProto.FLOAT4E2M1,
}  # fmt: skip


class Silent(trt.ILogger):
    def __init__(self) -> None:
        trt.ILogger.__init__(self)

    def log(self, severity: object, msg: str) -> None:
        pass


def test_on_the_official_cases_we_say_what_the_parser_does_not() -> None:
    """Where it takes a case and changes a type, `silent_changes` says so; of other nodes that it takes, nothing is said."""
    log = Silent()
    builder = trt.Builder(log)
    wrong, taken, told = [], 0, 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cases = load_model_tests(kind="node")
    for case in cases:
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        if not trt.OnnxParser(network, log).parse(case.model.SerializeToString()):
            continue
        graph = case.model.graph
        stated = {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)}
        tensors = [network.get_input(index) for index in range(network.num_inputs)]
        tensors += [network.get_output(index) for index in range(network.num_outputs)]
        changed = any(TYPES[tensor.dtype.name] != stated[tensor.name] for tensor in tensors if tensor.name in stated)
        said = bool(silent_changes(case.model))
        alone = len(graph.node) == 1  # else the change may be within
        wrong += [case.name] * (said != changed if alone else changed and not said)
        taken, told = taken + 1, told + said
    assert not wrong
    assert taken > 900
    assert told >= 30
