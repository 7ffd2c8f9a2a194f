"""TensorRT for RTX: plans that are really built here, and how they are opened and run on a machine that records it."""

import dataclasses
import importlib
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from ddcat.bundle import Bundle, TrustPolicy, entries, open_bundle, write_bundle
from ddcat.choices import Precision
from ddcat.engines import open_engine
from ddcat.engines.errors import EngineError
from ddcat.errors import BundleError
from ddcat.manifest import DeviceKinds, DimRange, InputShapes, TensorEntry
from ddcat_export.engines import build_engine
from ddcat_export.precision_cast import cast_graph
from tests.bundles import small_graph
from tests.engines import machine as doubles
from tests.engines.test_tensorrt import LADDER

FREE = InputShapes(
    batch=DimRange(minimum=1, maximum=2), height=DimRange(minimum=8, maximum=40), width=DimRange(minimum=9, maximum=50)
)
ONE = InputShapes(**dict.fromkeys(("batch", "height", "width"), DimRange(minimum=16, maximum=16)))


@pytest.fixture
def real() -> None:
    """Let the engine be that of the library which is installed."""
    doubles.forget_engine()
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")


def bundle_of(graph: bytes, folder: Path, build: Callable, shapes: InputShapes = LADDER, **options: object) -> Bundle:
    manifest = build(graph, "ort", name="of-ort").manifest.model_copy(update={"shapes": shapes})
    built = build_engine("trt-rtx", graph, precision="fp32", shapes=shapes, **options)
    files = {"model.onnx": graph, **built.files}
    about = {"engine": built.entry, "inputs": built.inputs, "outputs": built.outputs, "files": entries(files)}
    return write_bundle(folder / "of-rtx", manifest.model_copy(update=about), files)


@pytest.mark.usefixtures("real")
@pytest.mark.parametrize("shapes", [LADDER, FREE, ONE], ids=["ladder", "free", "one size"])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8"])
def test_plans_are_built_on_a_cpu(precision: Precision, shapes: InputShapes) -> None:
    graph = small_graph(int8=precision == "int8")
    if precision in ("fp16", "bf16"):
        model = onnx.load_model_from_string(graph)
        model.opset_import[0].version = 22
        graph = cast_graph(model.SerializeToString(), precision)
    built = build_engine("trt-rtx", graph, precision=precision, shapes=shapes, targets=("sm89", "sm120"))
    assert not built.runs_here
    assert isinstance(built.entry.built_for, DeviceKinds)
    assert built.entry.built_for.compute_capabilities == ("8.9", "12.0")
    assert built.entry.options["cuda_graphs"] is (shapes is not FREE)
    assert b"vtrt" in built.files["model.plan"][:8]
    assert built.inputs == (TensorEntry(name="image", dtype="uint8", shape=("?", "?", "?", 3)),)
    assert [entry.name for entry in built.outputs] == ["labels", "logits"]


@pytest.mark.usefixtures("real")
@pytest.mark.parametrize(
    ("targets", "precision", "reason"),
    [
        (("sm90",), "fp32", r"--for sm90: TensorRT for RTX [\d.]+ builds for sm75, .*sm120, .*or current$"),
        (("current",), "fp32", "there is no GPU here that CUDA can use"),
        (("current", "sm89"), "fp32", "with other GPUs: leave those out"),
        (("sm75",), "bf16", "does not compute in bf16; use --precision fp16"),
    ],
)
def test_what_is_not_built(targets: tuple[str, ...], precision: Precision, reason: str) -> None:
    with pytest.raises(EngineError, match=reason):
        build_engine("trt-rtx", small_graph(), precision=precision, shapes=LADDER, targets=targets)


@pytest.mark.usefixtures("real")
def test_a_node_that_the_parser_does_not_take_is_named() -> None:
    model = onnx.load_model_from_string(small_graph(logits=False))
    argmax = next(node for node in model.graph.node if node.op_type == "ArgMax")
    model.graph.node.insert(0, helper.make_node("NonZero", ["weight"], ["places"], name="n"))
    argmax.name = "a"
    with pytest.raises(EngineError, match=r"^TensorRT for RTX [\d.]+ does not accept the graph: n \(NonZero\): .") as refusal:
        build_engine("trt-rtx", model.SerializeToString(), precision="fp32", shapes=LADDER)
    assert "\n" not in str(refusal.value)


@pytest.mark.usefixtures("real")
def test_a_bundle_that_is_opened_without_a_gpu(build: Callable, tmp_path: Path) -> None:
    bundle = bundle_of(small_graph(), tmp_path, build, targets=("sm89",))
    with pytest.raises(
        EngineError, match=r"there is no GPU here that CUDA can use.*: TensorRT needs one of NVIDIA's"
    ) as refusal:
        open_engine(bundle)
    assert "\n" not in str(refusal.value)
    plan = bundle.path / "model.plan"
    plan.write_bytes(plan.read_bytes()[:-1] + b"!")
    with pytest.raises(BundleError, match=r"model\.plan"):  # before anything is said of GPUs
        open_bundle(bundle.path)
    with pytest.raises(BundleError, match="is not signed"):
        open_bundle(bundle.path, TrustPolicy.from_options(tmp_path / "key.pub", None))


def test_without_tensorrt_rtx(monkeypatch: pytest.MonkeyPatch, build: Callable, tmp_path: Path) -> None:
    doubles.forget_engine()
    doubles.Machine().install(monkeypatch)
    bundle = bundle_of(small_graph(), tmp_path, build)
    doubles.forget_engine()
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(EngineError, match=r'the runtime of engine trt-rtx is not installed .*: pip install "\.\[rtx\]"'):
        open_engine(bundle)
    doubles.forget_engine()


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable:
    def install(capability: tuple[int, int] = (8, 9)) -> object:
        doubles.forget_engine()
        machine = doubles.Machine()
        machine.capability = capability
        machine.install(monkeypatch)
        return machine

    yield install
    doubles.forget_engine()


@pytest.mark.parametrize("shapes", [LADDER, FREE], ids=["ladder", "free"])
def test_builds_and_answers(machine: Callable, shapes: InputShapes, build: Callable, oracle: Callable, tmp_path: Path) -> None:
    here = machine()
    bundle = bundle_of(small_graph(), tmp_path, build, shapes, targets=("sm89", "sm120"))
    assert here.told("compute_capability") == [("SM89",), ("SM120",)]
    assert here.told("deserialize"), "it is opened where such a GPU is"
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 24, 3)).astype(np.uint8)
    with open_engine(bundle) as engine:
        assert engine.description["runtime"] == "tensorrt_rtx 1.7.1.116"
        for _ in range(3):
            np.testing.assert_array_equal(engine.infer(images).labels, oracle(images)[0])
    (settings,) = here.told("runtime_config")[-1]
    assert settings.dynamic_shapes_kernel_specialization_strategy.name == "NONE"
    assert not here.memory, "memory was not given back"


def test_current_is_the_gpu_of_this_machine(machine: Callable) -> None:
    here = machine((9, 0))
    built = build_engine("trt-rtx", small_graph(), precision="fp32", shapes=LADDER, targets=("current",))
    assert here.told("compute_capability") == [("CURRENT",)]
    assert built.entry.built_for.compute_capabilities == ("9.0",)
    assert built.runs_here


def test_both_of_them_in_one_process(machine: Callable, build: Callable, oracle: Callable, tmp_path: Path) -> None:
    machine()
    graph, images = small_graph(), np.random.default_rng(0).integers(0, 256, (1, 16, 24, 3)).astype(np.uint8)
    rtx = bundle_of(graph, tmp_path, build)
    built = build_engine("trt", graph, precision="fp32", shapes=LADDER)
    files = {"model.onnx": graph, **built.files}
    manifest = rtx.manifest.model_copy(update={"engine": built.entry, "files": entries(files)})
    trt = dataclasses.replace(rtx, files=files, manifest=manifest)
    with open_engine(rtx) as one, open_engine(trt) as two:
        for engine in (one, two):
            np.testing.assert_array_equal(engine.infer(images).labels, oracle(images)[0])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"capability": (9, 0)}, r"for GPUs of compute capability 8.9, and here is one of 9.0: .* --for current$"),
        ({"driver_too_old": True}, "the driver of this GPU is too old: it has CUDA 13.0; install a newer driver$"),
        ({"gpus": 0}, "there is no GPU here"),
        ({"fails": {"OLD_CUDA_DRIVER"}}, "does not run the plan here: the driver is too old; install a newer driver$"),
        ({"fails": {"UNSUPPORTED_CC"}}, "does not run the plan here: it is for other GPUs; .* --for current$"),
        ({"fails": {"VERSION_MISMATCH"}}, "another version built it; build it again: ddcat export BUNDLE --engine trt-rtx$"),
        ({"fails": {"MALFORMED_ENGINE"}}, "it is not a plan of TensorRT for RTX; export it again$"),
    ],
)
def test_a_plan_is_refused_elsewhere(
    machine: Callable, build: Callable, tmp_path: Path, change: dict[str, object], reason: str
) -> None:
    machine()
    bundle = bundle_of(small_graph(), tmp_path, build, targets=("sm89",))
    here = machine()
    for name, value in change.items():
        setattr(here, name, value)
    with pytest.raises(EngineError, match=reason) as refusal:
        open_engine(bundle)
    assert "\n" not in str(refusal.value)
    assert not here.told("deserialize"), "no byte of it is run"


def test_another_version_is_refused(machine: Callable, build: Callable, tmp_path: Path) -> None:
    machine()
    bundle = bundle_of(small_graph(), tmp_path, build, targets=("sm89",))
    engine = bundle.manifest.engine
    older = engine.built_for.model_copy(update={"runtime": "tensorrt_rtx 1.6.0.1"})
    manifest = bundle.manifest.model_copy(update={"engine": engine.model_copy(update={"built_for": older})})
    with pytest.raises(EngineError, match=r"by tensorrt_rtx 1.6.0.1, and here is tensorrt_rtx 1.7.1.116: .* --for sm89$"):
        open_engine(dataclasses.replace(bundle, manifest=manifest))


@pytest.mark.usefixtures("real")
def test_the_recording_machine_has_no_names_of_its_own() -> None:
    real = importlib.import_module("tensorrt_rtx")
    doubled = doubles.tensorrt_rtx_of(doubles.Machine())
    for name in ("ComputeCapability", "EngineValidity", "DynamicShapesKernelSpecializationStrategy"):
        assert set(getattr(doubled, name).__members__) <= set(getattr(real, name).__members__)
    diagnostics = real.EngineInvalidityDiagnostics.__members__
    assert {name: int(value) for name, value in doubled.EngineInvalidityDiagnostics.__members__.items()} == {
        name: int(value) for name, value in diagnostics.items()
    }
