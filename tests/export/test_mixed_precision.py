"""fp16 and bf16 with nodes in fp32: dangerous ranges, sensitive nodes, the bundle and what is refused."""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from ddcat.bundle import open_bundle
from ddcat.choices import Precision
from ddcat.engines import open_engine
from ddcat.engines.onnxruntime import OrtGraph
from ddcat.engines.openvino import OpenVinoGraph
from ddcat.manifest_precision import AccuracyDrop, EqualLabels, KeptNode
from ddcat_bench.gate.thresholds import DEFAULT, read_thresholds
from ddcat_export import exporting, mixed_precision, option_checks
from ddcat_export.dangerous_ranges import dangerous
from ddcat_export.errors import ExportError
from ddcat_export.exporting import Exported, export
from ddcat_export.graph_checks import COMPUTES, OPSET, check_graph, types_of
from ddcat_export.mixed_precision import LEAST_EQUAL
from ddcat_export.parity import check_parity, sample_images
from ddcat_export.precision_cast import cast_graph, castable, simulated
from ddcat_export.rebuild import rebuild
from ddcat_serve.cli import app as serve_app
from tests.commands import refusal

SIZE = (40, 48)


def graph_of(body: Sequence[tuple[str, tuple[str, ...], str]], weights: Mapping[str, npt.NDArray[np.float32]]) -> bytes:
    """
    A segmenter of three classes, whose logits are the last of a few nodes.

    Parameters
    ----------
    body : sequence of (operator, inputs, output)
        The first reads `planes`, the image in [0, 1], and the last gives `logits`.
    weights : mapping of str to array
        What else they read.
    """
    helper = onnx.helper
    given = {"levels": np.float32(255), "axes": np.array([2, 3]), **weights}
    nodes = [
        helper.make_node("Cast", ["image"], ["values"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Div", ["values", "levels"], ["unit"]),
        helper.make_node("Transpose", ["unit"], ["planes"], perm=[0, 3, 1, 2]),
        *(helper.make_node(operator, list(inputs), [output]) for operator, inputs, output in body),
        helper.make_node("ArgMax", ["logits"], ["chosen"], axis=1, keepdims=0),
        helper.make_node("Cast", ["chosen"], ["chosen_values"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Cast", ["chosen_values"], ["labels"], to=onnx.TensorProto.UINT8),
    ]
    for node in nodes:
        node.name = node.output[0]
    shape = ["batch", *SIZE]
    graph = helper.make_graph(
        nodes,
        "main",
        [helper.make_tensor_value_info("image", onnx.TensorProto.UINT8, [*shape, 3])],
        [
            helper.make_tensor_value_info("labels", onnx.TensorProto.UINT8, shape),
            helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["batch", 3, *SIZE]),
        ],
        [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in given.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    check_graph(model, "fp32")
    content: bytes = model.SerializeToString()
    return content


def gained(*gains: float) -> bytes:
    """Four convolutions, a ReLU behind the second; each makes the maps as many times as large, and mixes channels a little."""
    random = np.random.default_rng(1)
    weights = {
        f"weight{place}": (gain * (np.eye(3) + random.uniform(-0.3, 0.3, (3, 3))))[..., None, None].astype(np.float32)
        for place, gain in enumerate(gains)
    }
    body = [
        ("Conv", ("planes", "weight0"), "first"),
        ("Conv", ("first", "weight1"), "second"),
        ("Relu", ("second",), "positive"),
        ("Conv", ("positive", "weight2"), "third"),
        ("Conv", ("third", "weight3"), "logits"),
    ]
    return graph_of(body, weights)


def labels_of(graph: bytes, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    with OrtGraph(graph) as opened:
        return opened.run(images).labels


def logits_of(graph: bytes, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    with OrtGraph(graph) as opened:
        logits = opened.run(images).logits
    assert logits is not None
    return logits


@pytest.mark.parametrize("kept", [[], ["first", "second"], ["first", "second", "third"]])
def test_openvino_opens_a_graph_in_bf16_however_many_nodes_are_in_fp32(kept: list[str]) -> None:
    graph, images = gained(1.0, 1.0, 1.0, 1.0), sample_images((2, *SIZE), 0)
    with OpenVinoGraph(cast_graph(graph, "bf16", fp32=kept), precision="bf16") as opened:
        equal = (opened.run(images).labels == labels_of(graph, images)).mean()
    assert equal > 0.9


def test_an_activation_beyond_fp16_keeps_its_nodes_in_fp32() -> None:
    graph, images = gained(400.0, 400.0, 1 / 400, 1 / 400), sample_images((2, *SIZE), 0)
    expected = labels_of(graph, images)
    assert len(np.unique(expected)) == 3
    plain = simulated(cast_graph(graph, "fp16"))
    assert not np.all(np.isfinite(logits_of(plain, images)))
    assert (labels_of(plain, images) != expected).mean() > 0.1

    found = dangerous(graph, "fp16", [images])
    assert [(node.name, node.reason) for node in found] == [(name, "range") for name in ("second", "positive", "third")]
    assert all(node.largest is not None and 1e5 < node.largest < 1e6 for node in found)
    mixed = cast_graph(graph, "fp16", fp32=[node.name for node in found])
    assert (labels_of(simulated(mixed), images) != expected).mean() < 0.01
    assert dangerous(graph, "bf16", [images]) == ()


def test_onnx_runtime_hides_what_fp16_overflows() -> None:
    """It computes typed fp16 in fp32 on a CPU: that is why the roundings are simulated."""
    graph, images = gained(400.0, 400.0, 1 / 400, 1 / 400), sample_images((2, *SIZE), 0)
    assert np.all(np.isfinite(logits_of(cast_graph(graph, "fp16"), images)))


def test_a_large_weight_keeps_its_node_in_fp32() -> None:
    graph, images = gained(1.0, 7e4, 1 / 7e4, 1.0), sample_images((2, *SIZE), 0)
    with pytest.raises(ExportError, match=r"weight1 has a weight of .* which fp16 cannot hold"):
        cast_graph(graph, "fp16")
    found = dangerous(graph, "fp16", [images])
    assert [(node.name, node.reason) for node in found] == [("second", "weight"), ("positive", "range"), ("third", "range")]
    mixed = simulated(cast_graph(graph, "fp16", fp32=[node.name for node in found]))
    assert (labels_of(mixed, images) != labels_of(graph, images)).mean() < 0.01


def test_a_sum_that_passes_beyond_fp16_is_dangerous_though_its_mean_is_not() -> None:
    body = [
        ("Conv", ("planes", "weight"), "maps"),
        ("ReduceMean", ("maps", "axes"), "mean"),
        ("Sub", ("maps", "mean"), "logits"),
    ]
    graph = graph_of(body, {"weight": np.full((3, 3, 1, 1), 100, np.float32)})
    images = np.full((1, *SIZE, 3), 255, np.uint8)
    (found,) = dangerous(graph, "fp16", [images])
    assert (found.name, found.reason) == ("mean", "range")
    assert found.largest == pytest.approx(300 * SIZE[0] * SIZE[1])
    assert dangerous(graph, "bf16", [images]) == ()


def test_values_that_are_not_finite_are_the_network_s_fault() -> None:
    with pytest.raises(ExportError, match="the network itself computes values that are not finite at second"):
        dangerous(gained(1e20, 1e20, 1.0, 1.0), "fp16", [sample_images((1, *SIZE), 0)])


@settings(max_examples=25, deadline=None)
@given(
    fp32=st.sets(st.sampled_from(["first", "second", "positive", "third", "logits"])),
    precision=st.sampled_from(["fp16", "bf16"]),
)
def test_any_nodes_may_stay_in_fp32(fp32: set[str], precision: Precision) -> None:
    graph, images = gained(2.0, 3.0, 0.5, 1.0), sample_images((1, *SIZE), 0)
    content = cast_graph(graph, precision, fp32=fp32)
    model = onnx.load_model_from_string(content)
    types = types_of(model)
    nodes = {node.name: node for node in model.graph.node}
    for name in ("first", "second", "third", "logits"):
        kinds = {types[tensor] for tensor in (*nodes[name].input, *nodes[name].output)}
        assert kinds == {COMPUTES["fp32" if name in fp32 else precision]}, name
    follows = "second" in fp32 or "positive" in fp32
    assert types[nodes["positive"].output[0]] == COMPUTES["fp32" if follows else precision]
    assert not any(types[node.input[0]] == types[node.output[0]] for node in nodes.values() if node.op_type == "Cast")
    found, expected = logits_of(simulated(content), images), logits_of(graph, images)
    unit = {"fp16": 2.0**-11, "bf16": 2.0**-8}[precision]
    if {"first", "second", "third", "logits"} <= fp32:
        np.testing.assert_array_equal(found, expected)
    else:
        assert 0 < np.abs(found - expected).max() <= 12 * unit * np.abs(expected).max()


def test_a_node_that_is_not_there_is_refused() -> None:
    with pytest.raises(ExportError, match="the graph has no node unit that could stay in fp32"):
        cast_graph(gained(1.0, 1.0, 1.0, 1.0), "bf16", fp32=["unit"])


@pytest.fixture(scope="module")
def made(quick: pytest.MonkeyPatch, run: Path, scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """With three nodes in fp32, however many labels are equal: its network has random weights."""

    def three(most: int, holds: Callable[[int], bool]) -> int:
        for number in (0, 3):
            holds(number)
        return 3

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mixed_precision, "few", three)
        return export(
            run, tmp_path_factory.mktemp("bf16") / "bundle", engine="openvino", precision="bf16", calibration_images=2,
            max_drop=30, data_root=scenes,
        )  # fmt: skip


def test_the_bundle_says_what_was_kept(made: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest, files = made.bundle.manifest, made.bundle.files
    mixed = manifest.mixed
    assert mixed is not None
    assert (manifest.engine.effective_precision, manifest.quantisation) == ("bf16", None)
    assert 0.9 < min(mixed.equal_labels.clean, mixed.equal_labels.adversarial) <= 1
    model = onnx.load_model_from_string(files["model.onnx"])
    types, kept = types_of(model), {node.name for node in mixed.kept}
    assert len(kept) == 3
    assert {types[node.output[0]] for node in model.graph.node if node.name in kept} == {onnx.TensorProto.FLOAT}
    report = json.loads(files[mixed.report])
    assert len(report["nodes"]) == mixed.typed_nodes + len(kept)
    assert [one["node"] for one in report["nodes"]][: len(kept)] == [node.name for node in mixed.kept]
    assert [trial["fp32_nodes"] for trial in report["trials"]] == [0, 3]
    assert report["trials"][1]["equal_labels"] == mixed.equal_labels.model_dump()
    monkeypatch.setenv("COLUMNS", "250")
    shown = " ".join(CliRunner().invoke(serve_app, ["inspect", str(made.bundle.path)]).stdout.split())
    assert f"{len(kept)} nodes; {mixed.typed_nodes} round to the precision" in shown
    assert "99.85% were needed" in shown


def test_openvino_computes_each_node_in_its_type(made: Exported) -> None:
    model = onnx.load_model_from_string(made.bundle.files["model.onnx"])
    types = types_of(model)
    written = Counter(types[node.output[0]] for node in model.graph.node if node.op_type == "Conv")
    with OpenVinoGraph(made.bundle.files["model.onnx"], precision="bf16") as graph:
        kinds = Counter(
            str(node.get_rt_info()["runtimePrecision"].astype(str))
            for node in graph._compiled.get_runtime_model().get_ordered_ops()
            if "Convolution" in str(node.get_rt_info()["layerType"].astype(str))
        )
        assert graph.description["float_precision"] == "f32"
    assert kinds["bf16"] == written[onnx.TensorProto.BFLOAT16] > 0
    assert kinds["f32"] == written[onnx.TensorProto.FLOAT]


def test_another_engine_has_the_same_graph(made: Exported, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    rebuild(made.bundle.path, tmp_path / "rtx", engine="trt-rtx", sizes=((64, 48),))
    rebuilt = open_bundle(tmp_path / "rtx")
    assert rebuilt.manifest.mixed == made.bundle.manifest.mixed
    assert all(rebuilt.files[name] == made.bundle.files[name] for name in ("model.onnx", "sensitivity.json"))
    with pytest.raises(ExportError, match="has a graph in bf16, and a graph in fp32 needs the checkpoint"):
        rebuild(made.bundle.path, tmp_path / "fp32", engine="ort", precision="fp32")
    with open_engine(made.bundle, threads=1) as engine:
        assert engine.infer(sample_images((1, 40, 48), 0)).labels.shape == (1, 40, 48)


def test_the_most_sensitive_nodes_are_kept_until_labels_are_equal(
    quick: pytest.MonkeyPatch, monkeypatch: pytest.MonkeyPatch, run: Path, scenes: Path, tmp_path: Path
) -> None:
    """With a stand-in for the engine's labels, which become equal when three nodes are kept."""
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")

    names: list[str] = []

    def compare(self: object, content: bytes, opens: object) -> tuple[AccuracyDrop, EqualLabels]:
        types = types_of(model := onnx.load_model_from_string(content))
        wide = sum(types[node.output[0]] == onnx.TensorProto.FLOAT for node in model.graph.node if node.name in names)
        equal = EqualLabels(clean=1.0, adversarial=LEAST_EQUAL if wide >= 3 else LEAST_EQUAL - 0.0001)
        return AccuracyDrop(clean=0, adversarial=0, images=1, attack={}), equal

    def measure_each(graph: bytes, layers: list[str], *rest: object, **options: object) -> tuple[object, ...]:
        products = [node.name for node in castable(onnx.load_model_from_string(graph)) if node.op_type == "Conv"]
        names.extend(products[:6])
        return tuple(mixed_precision.LayerError(name, 0.1, 0.2) for name in products[:6])

    monkeypatch.setattr(mixed_precision, "measure_each", measure_each)
    monkeypatch.setattr(mixed_precision.Evaluator, "compare", compare)
    monkeypatch.setattr(mixed_precision.Evaluator, "score", lambda *a: (50.0, 50.0))
    monkeypatch.setattr(
        mixed_precision, "dangerous", lambda *a, **k: (KeptNode(name=first_relu(a[0]), reason="range", largest=1e5),)
    )
    compared, skipped = [], exporting.check_parity
    monkeypatch.setattr(exporting, "check_parity", lambda *a, **k: compared.append(k.get("tolerance")) or skipped(*a, **k))
    done = export(
        run, tmp_path / "out", engine="trt-rtx", precision="fp16", max_size=(64, 64), calibration_images=1, max_drop=1,
        data_root=scenes, calibration="clean",
    )  # fmt: skip
    mixed = done.bundle.manifest.mixed
    assert mixed is not None
    assert [node.reason for node in mixed.kept] == ["range", "labels", "labels", "labels"]
    assert [node.name for node in mixed.kept[1:]] == names[:3]
    assert compared == [None]  # in fp32: equal labels on the data decide of the rounding, and not the logits of made-up images


def first_relu(graph: bytes) -> str:
    return next(node.name for node in onnx.load_model_from_string(graph).graph.node if node.op_type == "Relu")


def test_limits_that_do_not_hold_leave_nothing(
    quick: pytest.MonkeyPatch, monkeypatch: pytest.MonkeyPatch, run: Path, scenes: Path, tmp_path: Path
) -> None:
    monkeypatch.setattr(mixed_precision, "LEAST_EQUAL", 1.01)
    monkeypatch.setattr(
        mixed_precision, "measure_each", lambda graph, layers, *a, **k: [mixed_precision.LayerError(layers[0], 0, 0)]
    )
    with pytest.raises(ExportError, match=r"with \d of \d+ nodes in fp32, bf16 gives [\d.]+% of the labels of fp32 and loses"):
        export(
            run, tmp_path / "out", engine="openvino", precision="bf16", calibration_images=1, max_drop=5, data_root=scenes,
            calibration="clean",
        )  # fmt: skip
    assert not list(tmp_path.iterdir())


def test_fp16_that_is_refused_names_a_way_out(monkeypatch: pytest.MonkeyPatch, run: Path, scenes: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    monkeypatch.setattr(exporting, "check_parity", check_parity)
    monkeypatch.setattr(exporting, "FP16_TOLERANCE", 1e-5)
    with pytest.raises(ExportError, match=r"at most 1e-05 may; .*: use --max-drop 0\.2, .* or --precision fp32"):
        export(run, tmp_path / "out", engine="trt-rtx", precision="fp16", max_size=(64, 64), data_root=scenes)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_more_than_the_gate_wants_is_asked_for(precision: Precision) -> None:
    agreement = read_thresholds(DEFAULT, precision).agreement
    assert agreement is not None
    assert agreement + 0.0005 <= LEAST_EQUAL + 1e-12


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--precision", "bf16", "--calibration", "clean"],
            "--calibration has no effect here, because --max-drop is not given",
        ),
        (["--precision", "fp16", "--max-drop", "1"], "--max-drop: OpenVINO cannot keep nodes of an fp16 graph in fp32"),
    ],
)
def test_options_that_cannot_be_are_one_line(
    run: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.setattr(option_checks, "check_possible", lambda engine, precision: None)  # fp16 needs another CPU
    assert refusal("ddcat", "export", run, "--engine", "openvino", *arguments).startswith(message)
