"""The command's way to int8: a bundle for each runtime, what its manifest says, and what is refused."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from ddcat.bundle import Bundle, open_bundle
from ddcat.engines import open_engine
from ddcat.engines.onnxruntime import OrtGraph
from ddcat.engines.openvino import OpenVinoGraph
from ddcat_export import exporting, ptq
from ddcat_export.calibration import measure_ranges
from ddcat_export.errors import ExportError
from ddcat_export.exporting import Exported, export
from ddcat_export.float_fallback import Evaluator, Open
from ddcat_export.parity import sample_images
from ddcat_export.quantise import check_quantised, layers_of, quantised_tensors
from ddcat_export.rebuild import rebuild
from ddcat_export.sensitivity import LayerError, measure_sensitivity
from tests.commands import call, refusal


@pytest.fixture(scope="module")
def told() -> list[str]:
    return []


@pytest.fixture(scope="module")
def made(
    quick: pytest.MonkeyPatch, run: Path, scenes: Path, tmp_path_factory: pytest.TempPathFactory, told: list[str]
) -> Exported:
    return export(
        run, tmp_path_factory.mktemp("int8") / "bundle", engine="ort", precision="int8", logits=True, calibration_images=4,
        max_drop=30, data_root=scenes, progress=told.append,
    )  # fmt: skip


def test_the_bundle_holds_both_forms_and_the_report(made: Exported, bundle: Bundle, told: list[str]) -> None:
    written, manifest = made.bundle, made.bundle.manifest
    assert set(written.files) == {"model.onnx", "model.cpu.onnx", "sensitivity.json", "golden.safetensors"}
    check_quantised(onnx.load_model_from_string(written.files["model.onnx"]))
    check_quantised(onnx.load_model_from_string(written.files["model.cpu.onnx"]), unsigned=True)
    engine, found = manifest.engine, manifest.quantisation
    assert (engine.file, engine.graph, engine.effective_precision) == ("model.cpu.onnx", "model.onnx", "int8")
    assert found is not None
    assert found.drop is not None
    assert max(found.drop.clean, found.drop.adversarial) <= found.max_drop == 30
    assert (found.drop.images, found.drop.attack["name"]) == (4, "PGD")
    layers = layers_of(bundle.files["model.onnx"])
    assert found.quantised_layers + len(found.float_layers) == len(layers)
    report = json.loads(written.files[found.report or ""])
    assert [one["layer"] for one in report["layers"]] == [one.layer for one in made.layers]
    assert {one.layer for one in made.layers} == set(layers)
    errors = [max(one.clean, one.adversarial) for one in made.layers]
    assert errors == sorted(errors, reverse=True)
    assert report["trials"][-1]["clean"] <= 30
    assert any(line.startswith(f"measuring the sensitivity of layers, {len(layers)} of {len(layers)}, ") for line in told)
    assert any("s each" in line and "s left" in line for line in told)


def test_another_engine_is_built_of_it(made: Exported, tmp_path: Path) -> None:
    done = call("ddcat", "export", made.bundle.path, "--engine", "openvino", "--out", tmp_path / "rebuilt")
    assert (done.returncode, done.stderr) == (0, "")
    assert "openvino in int8, CPU" in done.stdout
    assert "int8 costs " in done.stdout
    rebuilt = open_bundle(tmp_path / "rebuilt")
    assert rebuilt.manifest.engine.file == "model.cpu.onnx"
    assert rebuilt.manifest.quantisation == made.bundle.manifest.quantisation
    kept = ("model.onnx", "model.cpu.onnx", "sensitivity.json")
    assert all(rebuilt.files[name] == made.bundle.files[name] for name in kept)
    back, found = rebuild(rebuilt.path, tmp_path / "back", engine="ort")
    assert back.manifest.engine.file == "model.cpu.onnx"
    assert found is not None
    images = sample_images((1, 40, 48), 1)
    with open_engine(back, threads=1) as one, open_engine(made.bundle, threads=1) as other:
        np.testing.assert_array_equal(one.infer(images).labels, other.infer(images).labels)


def test_a_limit_that_does_not_hold_leaves_nothing(
    quick: pytest.MonkeyPatch, monkeypatch: pytest.MonkeyPatch, run: Path, bundle: Bundle, scenes: Path, tmp_path: Path
) -> None:
    layers = [LayerError(layer, 0, 0) for layer in layers_of(bundle.files["model.onnx"])]
    monkeypatch.setattr(ptq, "measure_sensitivity", lambda *a, **k: layers)
    with pytest.raises(ExportError, match=r"int8 loses .* points of clean and .* layers in float; -100 are allowed"):
        export(
            run, tmp_path / "out", precision="int8", calibration_images=1, max_drop=-100, data_root=scenes, calibration="clean"
        )
    assert not list(tmp_path.iterdir())


def test_without_a_limit_nothing_is_judged(quick: pytest.MonkeyPatch, run: Path, scenes: Path, tmp_path: Path) -> None:
    done = export(run, tmp_path / "out", precision="int8", calibration_images=1, data_root=scenes, engine="openvino")
    found = done.bundle.manifest.quantisation
    assert found is not None
    assert (found.drop, found.max_drop, found.report, found.float_layers, done.layers) == (None, None, None, (), ())
    assert "sensitivity.json" not in done.bundle.files


@pytest.mark.parametrize(
    ("engine", "runs_it"), [("ort", OrtGraph), pytest.param("openvino", OpenVinoGraph, marks=pytest.mark.slow)]
)
def test_the_form_for_a_cpu_is_judged_by_the_runtime_that_serves_it(
    quick: pytest.MonkeyPatch,
    monkeypatch: pytest.MonkeyPatch,
    run: Path,
    scenes: Path,
    tmp_path: Path,
    engine: str,
    runs_it: type,
) -> None:
    judged: list[tuple[type, bytes]] = []

    class Lenient(Evaluator):
        def score(self, content: bytes, opens: Open) -> tuple[float, float]:
            graph = opens(content)
            judged.append((type(graph), content))
            graph.close()
            return 50.0, 50.0

    monkeypatch.setattr(ptq, "measure_sensitivity", lambda *a, **k: ())
    monkeypatch.setattr(ptq, "Evaluator", Lenient)
    done = export(
        run, tmp_path / "out", engine=engine, precision="int8", calibration_images=1, max_drop=1, data_root=scenes,
        calibration="clean",
    )  # fmt: skip
    by = {content: graph for graph, content in judged}
    assert by[done.bundle.files["model.cpu.onnx"]] is runs_it
    assert done.bundle.files["model.onnx"] in by


def test_the_layer_with_the_coarsest_steps_is_the_worst(bundle: Bundle) -> None:
    graph = bundle.files["model.onnx"]
    images = [sample_images((1, 33, 40), 1)]
    nodes = {node.name: node for node in onnx.load_model_from_string(graph).graph.node}
    victim = layers_of(graph)[7]
    point = nodes[victim].input[0]
    assert point in quantised_tensors(graph)
    ranges = measure_ranges(graph, images)
    found = measure_sensitivity(graph, {**ranges, point: 30 * ranges[point]}, clean=images, adversarial=images)
    worst = found[0]
    assert nodes[worst.layer].input[0] == point  # what reads the tensor
    assert worst.clean == worst.adversarial > 3 * next(o.clean for o in found if nodes[o.layer].input[0] != point)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max-drop", "0"], "--max-drop has no effect here, because the precision is fp32: leave it out"),
        (["--calibration", "clean"], "--calibration has no effect here, because the precision is fp32"),
        (["--precision", "int8", "--calibration", "dirty"], "invalid value for '--calibration': 'dirty'"),
    ],
)
def test_options_that_cannot_be_are_one_line(run: Path, arguments: list[str], message: str) -> None:
    assert refusal("ddcat", "export", run, "--engine", "ort", *arguments).startswith(message)


def test_int8_without_its_data_is_refused_at_once(monkeypatch: pytest.MonkeyPatch, run: Path, tmp_path: Path) -> None:
    monkeypatch.setattr(exporting, "golden_images", None)  # what is slow is never reached
    with pytest.raises(ExportError, match="int8 and --max-drop need images of scenes: "):
        export(run, tmp_path / "out", precision="int8")
    assert not list(tmp_path.iterdir())
