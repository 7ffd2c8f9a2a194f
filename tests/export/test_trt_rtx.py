"""Bundles of engine trt-rtx, made where no GPU is."""

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from ddcat.bundle import Bundle, open_bundle
from ddcat.choices import Precision
from ddcat.engines import open_engine
from ddcat.engines.errors import EngineError
from ddcat.engines.golden import read_golden
from ddcat.errors import DdcatError
from ddcat.manifest import DeviceKinds
from ddcat_export.errors import ExportError
from ddcat_export.rebuild import rebuild
from ddcat_export.summary import summarise
from ddcat_serve.cli import app

pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
SIZES = ((64, 48), (40, 40))


@pytest.mark.parametrize("precision", ["fp32", "fp16", pytest.param("bf16", marks=pytest.mark.slow)])
def test_golden_labels_are_by_onnx_runtime(bundle: Bundle, tmp_path: Path, precision: Precision) -> None:
    made = rebuild(bundle.path, tmp_path / "rtx", engine="trt-rtx", precision=precision, max_size=(256, 256))
    opened = open_bundle(tmp_path / "rtx")
    manifest = opened.manifest
    assert isinstance(manifest.engine.built_for, DeviceKinds)
    assert manifest.engine.built_for.compute_capabilities == ("8.0", "8.6", "8.9", "12.0")
    assert manifest.shapes.height.maximum == 256
    assert manifest.golden is not None
    assert manifest.golden.labelled_by is not None
    assert manifest.golden.labelled_by.startswith("onnxruntime 1.")
    assert manifest.golden.labelled_by.endswith("on a CPU" if precision == "fp32" else "on a CPU, rounded after each node")
    assert made.replay is not None
    assert made.replay.share < {"fp32": 0.001, "fp16": 0.05, "bf16": 0.25}[precision]  # of random weights
    known = {example.name: example.labels for example in read_golden(bundle)}
    assert any(np.array_equal(example.labels, known[example.name]) for example in read_golden(opened)) or precision != "fp32"
    said = summarise(made.bundle, "the bundle", made.replay)
    assert "the golden labels are by onnxruntime 1." in said
    assert f"ddcat inspect {opened.path} --replay" in said


def test_a_ladder_and_what_inspect_says(bundle: Bundle, tmp_path: Path) -> None:
    made = rebuild(bundle.path, tmp_path / "rtx", engine="trt-rtx", sizes=SIZES, options={"targets": ("sm89",)}).bundle
    assert made.manifest.shapes.sizes == ((40, 40), (64, 48))
    assert made.manifest.engine.options["cuda_graphs"] is True
    shown = CliRunner().invoke(app, ["inspect", str(made.path)], terminal_width=300)
    assert "GPUs of compute capability 8.9, tensorrt_rtx 1." in shown.stdout
    assert "not by the engine" in " ".join(shown.stdout.split())
    replayed = CliRunner().invoke(app, ["inspect", str(made.path), "--replay"])
    assert isinstance(replayed.exception, EngineError)
    assert "there is no GPU here that CUDA can use" in str(replayed.exception)
    with pytest.raises(EngineError, match="there is no GPU here"):
        open_engine(made)


def test_inspect_replays(bundle: Bundle) -> None:
    shown = CliRunner().invoke(app, ["inspect", str(bundle.path), "--replay"])
    assert shown.exit_code == 0
    pixels = sum(example.labels.size for example in read_golden(bundle))
    assert f"0 of {pixels} golden labels differ" in shown.stdout


def test_a_plan_needs_a_largest_size(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="use --size HxW, one or several, or --max-size HxW"):
        rebuild(bundle.path, tmp_path / "rtx", engine="trt-rtx")
    with pytest.raises(ExportError, match="leave one of them out"):
        rebuild(bundle.path, tmp_path / "rtx", engine="trt-rtx", sizes=SIZES, max_size=(256, 256))
    with pytest.raises(DdcatError, match="--max-size 8x8 is too small: use 33x33 or more"):
        rebuild(bundle.path, tmp_path / "rtx", engine="trt-rtx", max_size=(8, 8))
