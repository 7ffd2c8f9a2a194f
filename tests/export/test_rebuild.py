"""From a bundle to a bundle, without torch."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from ddcat.bundle import Bundle, TrustPolicy, entries, open_bundle, write_bundle
from ddcat.engines import open_engine
from ddcat.engines.errors import EngineError, InputError
from ddcat.engines.golden import pack, read_golden, replay
from ddcat.errors import BundleError, DdcatError
from ddcat_export import bundle_builder
from ddcat_export.errors import ExportError
from ddcat_export.opsets import lowered
from ddcat_export.rebuild import rebuild

WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None
from ddcat.cli import export
export()
"""


def test_the_command_needs_no_torch(bundle: Bundle, tmp_path: Path) -> None:
    line = [sys.executable, "-c", WITHOUT_TORCH, bundle.path, "--engine", "openvino", "--out", tmp_path / "rebuilt"]
    done = subprocess.run([*map(str, line)], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    made = open_bundle(tmp_path / "rebuilt")
    for said in ("openvino in fp32, CPU", "labels differ from those of the bundle", made.digest):
        assert said in done.stdout
    assert made.manifest.engine.name == "openvino"
    assert made.manifest.rebuilt_from == bundle.digest
    kept = {"name", "source", "main_branch_only", "data", "classes", "preprocessing", "opset", "quantisation"}
    assert made.manifest.model_dump(include=kept) == bundle.manifest.model_dump(include=kept)
    assert made.files["model.onnx"] == bundle.files["model.onnx"]
    with open_engine(made, threads=1) as engine:
        assert replay(engine, read_golden(made)).differing == 0  # its own labels


def test_the_same_engine_again_gives_the_same_labels(bundle: Bundle, tmp_path: Path) -> None:
    made, found = rebuild(bundle.path, tmp_path / "rebuilt", engine="ort")
    assert found is not None
    assert (found.differing, found.pixels) == (0, sum(labels.size for _, _, labels in read_golden(bundle)))
    assert made.files == bundle.files


def test_bf16_of_openvino_keeps_the_fp32_graph(bundle: Bundle, tmp_path: Path) -> None:
    try:
        made, _ = rebuild(bundle.path, tmp_path / "bf16", engine="openvino", precision="bf16")
    except EngineError as cause:
        pytest.skip(f"bf16 is not of this CPU: {cause}")
    assert made.manifest.engine.effective_precision == "bf16"
    back, found = rebuild(made.path, tmp_path / "back", engine="ort", precision="fp32")
    assert back.files["model.onnx"] == bundle.files["model.onnx"]
    assert found is not None
    assert 0 < found.share < 0.25  # of the labels that bf16 gave


def test_a_ladder_of_a_graph_of_any_size(bundle: Bundle, tmp_path: Path) -> None:
    made, found = rebuild(bundle.path, tmp_path / "ladder", engine="ort", sizes=((64, 48), (40, 40)), max_batch=2)
    assert found is None  # no golden image has such a size
    assert made.manifest.shapes.sizes == ((40, 40), (64, 48))
    assert {labels.shape for _, _, labels in read_golden(made)} == {(64, 48)}  # the nearest to what they were
    with open_engine(made, threads=1) as engine:
        assert engine.infer(np.zeros((2, 40, 40, 3), np.uint8)).labels.shape == (2, 40, 40)
        for shape in ((3, 40, 40, 3), (1, 48, 64, 3)):
            with pytest.raises(InputError):
                engine.infer(np.zeros(shape, np.uint8))
    with pytest.raises(ExportError, match="does not accept 40x48"):
        rebuild(made.path, tmp_path / "no", engine="ort", sizes=((40, 48),))
    again, found = rebuild(made.path, tmp_path / "again", engine="ort")
    assert again.manifest.shapes == made.manifest.shapes
    assert found is not None


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"engine": "ort", "precision": "int8"}, ExportError, r"has a graph in fp32, .* int8 .* ddcat export .*best\.safe"),
        ({"engine": "ort", "precision": "fp16"}, EngineError, "does not compute in fp16 on a CPU, only in fp32 and int8"),
        ({"engine": "none"}, EngineError, "no engine 'none'"),
        ({"engine": "ort", "trust": TrustPolicy(digests=("0" * 64,))}, BundleError, ", expected 0000"),
        ({"engine": "ort", "key": Path("no.pem")}, BundleError, r"cannot sign with no\.pem"),
    ],
)
def test_what_cannot_be_is_refused_at_once(
    bundle: Bundle, tmp_path: Path, options: dict, error: type[DdcatError], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundle_builder, "build_engine", None)  # what is slow is never reached
    with pytest.raises(error, match=message):
        rebuild(bundle.path, tmp_path / "rebuilt", **options)
    assert not list(tmp_path.iterdir())


def test_an_engine_that_gives_other_labels_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    golden = read_golden(bundle)
    false = golden[0].labels.copy()
    false[: len(false) // 2] += 1
    files = {**bundle.files, "golden.safetensors": pack([golden[0]._replace(labels=false), *golden[1:]])}
    other = write_bundle(tmp_path / "other", bundle.manifest.model_copy(update={"files": entries(files)}), files)
    with pytest.raises(ExportError, match=rf"differs from the model: .*50 % on {golden[0].name}; at fp32 0.2 % may differ"):
        rebuild(other.path, tmp_path / "rebuilt", engine="ort")
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_options_of_a_runtime_reach_its_build(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[dict[str, object]] = []
    real = bundle_builder.build_engine

    def build(*arguments: Any, hardware: str, timings: bytes, **options: Any) -> Any:
        given.append({"hardware": hardware, "timings": timings})
        return real(*arguments, **options)

    monkeypatch.setattr(bundle_builder, "build_engine", build)
    files = {**bundle.files, "model.timings": b"measured before"}
    write_bundle(tmp_path / "old", bundle.manifest.model_copy(update={"files": entries(files)}), files)
    rebuild(tmp_path / "old", tmp_path / "new", engine="ort", options={"hardware": "ampere-plus"}, from_timing_cache=True)
    assert given == [{"hardware": "ampere-plus", "timings": b"measured before"}]
    with pytest.raises(ExportError, match="has no timing cache to repeat a build with: use a bundle of engine trt"):
        rebuild(bundle.path, tmp_path / "another", engine="ort", from_timing_cache=True)


def test_a_bundle_without_golden_images_is_not_rebuilt(bundle: Bundle, tmp_path: Path) -> None:
    files = {name: content for name, content in bundle.files.items() if name != "golden.safetensors"}
    bare = write_bundle(tmp_path / "bare", bundle.manifest.model_copy(update={"golden": None, "files": entries(files)}), files)
    with pytest.raises(ExportError, match="bare has no golden images: export again from the checkpoint"):
        rebuild(bare.path, tmp_path / "rebuilt", engine="ort")
    assert [path.name for path in tmp_path.iterdir()] == ["bare"]


@pytest.mark.parametrize("opset", [17, 20])
def test_a_graph_becomes_one_that_an_older_runtime_reads(bundle: Bundle, tmp_path: Path, opset: int) -> None:
    made, found = rebuild(bundle.path, tmp_path / "older", engine="ort", opset=opset)
    graph = onnx.load_model_from_string(made.files["model.onnx"])
    assert made.manifest.opset == graph.opset_import[0].version == opset
    assert found is not None  # golden images were labelled
    again, _ = rebuild(made.path, tmp_path / "again", engine="openvino", opset=22)
    assert again.manifest.opset == opset  # never a newer one
    assert again.files["model.onnx"] == made.files["model.onnx"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"opset": 16}, "--opset 16: expected 17 to 22"),
        ({"opset": 23}, "--opset 23: expected 17 to 22"),
        ({"opset": 21, "graph": "bf16"}, "--opset 21: convolutions take bfloat16 from opset 22 on"),
    ],
)
def test_an_opset_that_cannot_be_is_refused_at_once(
    bundle: Bundle, tmp_path: Path, options: dict, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = options.pop("graph", "fp32")
    monkeypatch.setattr("ddcat_export.rebuild.graph_precision", lambda engine, precision, mixed: graph)
    monkeypatch.setattr(bundle_builder, "build_engine", None)
    with pytest.raises(ExportError, match=message):
        rebuild(bundle.path, tmp_path / "rebuilt", engine="ort", **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("operator", "element", "needed"), [("Gelu", onnx.TensorProto.FLOAT, 20), ("Conv", onnx.TensorProto.BFLOAT16, 22)]
)
def test_a_graph_that_an_opset_cannot_hold_names_the_operator(operator: str, element: int, needed: int) -> None:
    weight = [onnx.helper.make_tensor("w", element, [1, 1, 1, 1], [1.0])]
    inputs = ["x", "w"] if operator == "Conv" else ["x"]
    x, y = (onnx.helper.make_tensor_value_info(name, element, [1, 1, 2, 2]) for name in "xy")
    graph = onnx.helper.make_graph([onnx.helper.make_node(operator, inputs, ["y"])], "g", [x], [y], weight[: len(inputs) - 1])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 22)], ir_version=10)
    with pytest.raises(
        ExportError, match=rf"^--opset 17: the graph needs opset {needed} for {operator}: use --opset {needed}$"
    ):
        lowered(model.SerializeToString(), 17)
