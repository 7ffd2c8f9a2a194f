"""TensorRT's engine from build to answer, on a machine that records what is asked of it."""

import dataclasses
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest

from ddcat.bundle import Bundle, entries, write_bundle
from ddcat.engines import open_engine
from ddcat.engines.errors import EngineError, InputError
from ddcat.hashing import sha256_of_bytes
from ddcat.manifest import DimRange, InputShapes
from ddcat_export.engines import build_engine, check_possible
from tests.bundles import small_graph
from tests.engines import machine as doubles

LADDER = InputShapes(
    batch=DimRange(minimum=1, maximum=3),
    height=DimRange(minimum=16, maximum=32),
    width=DimRange(minimum=24, maximum=48),
    sizes=((16, 24), (32, 48)),
)


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable]:
    def install(version: str = "10.13.2.6") -> object:
        doubles.forget_engine()
        machine = doubles.Machine(version)
        machine.install(monkeypatch)
        return machine

    yield install
    doubles.forget_engine()


def bundle_of(graph: bytes, folder: Path, shapes: InputShapes, build: Callable, **options: object) -> Bundle:
    """A bundle of TensorRT: the manifest is ONNX Runtime's but for what the build says of itself."""
    manifest = build(graph, "ort", name="of-ort").manifest.model_copy(update={"shapes": shapes})
    built = build_engine("trt", graph, precision="fp32", shapes=shapes, **options)
    files = {"model.onnx": graph, **built.files}
    about = {"engine": built.entry, "inputs": built.inputs, "outputs": built.outputs, "files": entries(files)}
    return write_bundle(folder / "of-trt", manifest.model_copy(update=about), files)


@pytest.mark.parametrize("version", ["8.6.1", "10.13.2.6", "11.4.0.106"])
def test_builds_and_answers(install: Callable, version: str, build: Callable, oracle: Callable, tmp_path: Path) -> None:
    machine = install(version)
    bundle = bundle_of(small_graph(confidence=True), tmp_path, LADDER, build)
    random = np.random.default_rng(0)
    with open_engine(bundle) as engine:
        assert engine.description["cuda_graphs"] is True
        assert engine.description["runtime"] == f"tensorrt {version}"
        for shape in [(1, 16, 24), (3, 32, 48), (2, 16, 24)] * 3:
            images = random.integers(0, 256, (*shape, 3)).astype(np.uint8)
            labels, logits = oracle(images)
            outputs = engine.infer(images)
            np.testing.assert_array_equal(outputs.labels, labels)
            assert outputs.logits is not None
            np.testing.assert_allclose(outputs.logits, logits, rtol=1e-6)
            assert outputs.confidence is not None
            assert outputs.confidence.shape == shape
        with pytest.raises(InputError, match="Image is 48 x 16"):
            engine.infer(np.zeros((1, 16, 48, 3), np.uint8))
    assert len(machine.told("execute")) == 6  # twice for each of three shapes: once to warm up, once to record
    assert len(machine.told("cudaStreamBeginCapture")) == len(machine.told("cudaGraphInstantiate")) == 3
    assert len(machine.told("cudaGraphLaunch")) == 6
    assert not machine.memory, "memory was not given back"
    for name in ("cudaGraphExecDestroy", "cudaGraphDestroy"):
        assert len(machine.told(name)) == 3
    assert len(machine.told("cudaStreamDestroy")) == len(machine.told("cudaStreamCreateWithFlags"))


def test_the_order_of_a_build_and_of_a_run(install: Callable, build: Callable, tmp_path: Path) -> None:
    machine = install()
    bundle = bundle_of(small_graph(logits=False), tmp_path, LADDER, build)
    assert [call[0] for call in machine.calls[:6]] == [
        "create_network", "parse", "set_timing_cache", "set_shape", "set_shape", "build",
    ]  # fmt: skip
    assert machine.told("create_network") == [(1 << 0,)]  # 1 << int(STRONGLY_TYPED)
    assert machine.told("set_shape") == [
        ("image", (1, 16, 24, 3), (1, 16, 24, 3), (3, 16, 24, 3)),
        ("image", (1, 32, 48, 3), (1, 32, 48, 3), (3, 32, 48, 3)),
    ]
    ((names, level, verbosity, profiles),) = machine.told("build")
    assert (level, verbosity, len(profiles)) == ("NONE", "DETAILED", 2)
    assert names == ["DISABLE_COMPILATION_CACHE", "EDITABLE_TIMING_CACHE"]  # TF32, which was on, is not

    machine.calls.clear()
    with open_engine(bundle) as engine:
        engine.infer(np.zeros((2, 32, 48, 3), np.uint8))
        engine.infer(np.zeros((2, 32, 48, 3), np.uint8))
    told = [call for call in machine.calls if call[0] not in ("cudaMalloc", "cudaHostAlloc", "cudaFree", "cudaFreeHost")]
    assert [call[0] for call in told] == [
        "deserialize", "cudaStreamCreateWithFlags", "create_context", "scratch", "set_profile", "cudaStreamSynchronize",
        "set_input_shape", "cudaMemcpyAsync", "execute", "cudaMemcpyAsync", "cudaStreamSynchronize", "cudaStreamBeginCapture",
        "execute", "cudaStreamEndCapture", "cudaGraphInstantiate", "cudaGraphDestroy",
        "cudaMemcpyAsync", "cudaGraphLaunch", "cudaMemcpyAsync", "cudaStreamSynchronize",
        "cudaGraphExecDestroy", "cudaStreamDestroy",
    ]  # fmt: skip
    assert machine.told("set_profile") == [(1, 77)]
    sizes = [call[2] for call in machine.told("cudaMemcpyAsync")]
    assert sizes == [2 * 32 * 48 * 3, 2 * 32 * 48] * 2
    assert sorted(size for (size,) in machine.told("cudaMalloc")) == [2 * 32 * 48, 4096, 2 * 32 * 48 * 3]


@pytest.mark.parametrize(
    ("version", "creation", "int8"),
    [
        ("8.6.1", "EXPLICIT_BATCH", ["INT8"]),
        ("10.13.2.6", "STRONGLY_TYPED", ["DISABLE_COMPILATION_CACHE", "EDITABLE_TIMING_CACHE"]),
        ("11.4.0.106", "STRONGLY_TYPED", ["DISABLE_COMPILATION_CACHE", "EDITABLE_TIMING_CACHE"]),
    ],
)
def test_int8_by_type_or_by_flag(install: Callable, version: str, creation: str, int8: list[str]) -> None:
    machine = install(version)
    built = build_engine("trt", small_graph(int8=True), precision="int8", shapes=LADDER)
    assert machine.told("build")[0][0] == int8
    assert built.entry.effective_precision == "int8"
    assert built.entry.options["typing"] == ("by flags" if version.startswith("8") else "strong")
    parsed = onnx.load_model_from_string(machine.told("parse")[0][0])
    assert parsed.opset_import[0].version == (17 if version.startswith("8") else 18)


def test_free_sizes_have_one_profile_and_no_cuda_graphs(
    install: Callable, build: Callable, oracle: Callable, tmp_path: Path
) -> None:
    machine = install()
    shapes = InputShapes(
        batch=DimRange(minimum=1, maximum=2), height=DimRange(minimum=8, maximum=40), width=DimRange(minimum=9, maximum=50)
    )
    bundle = bundle_of(small_graph(), tmp_path, shapes, build)
    assert machine.told("set_shape") == [("image", (1, 8, 9, 3), (1, 40, 50, 3), (2, 40, 50, 3))]
    with open_engine(bundle) as engine:
        for shape in [(1, 8, 9), (2, 40, 50), (1, 33, 17), (1, 33, 17)]:
            images = np.random.default_rng(1).integers(0, 256, (*shape, 3)).astype(np.uint8)
            np.testing.assert_array_equal(engine.infer(images).labels, oracle(images)[0])
    assert len(machine.told("create_context")) == 1
    assert not machine.told("cudaStreamBeginCapture")


def test_a_build_is_repeated_from_its_timings(install: Callable) -> None:
    machine = install()
    first = build_engine("trt", small_graph(), precision="fp32", shapes=LADDER)
    timings = first.files["model.timings"]
    assert first.entry.options["timings"] == sha256_of_bytes(timings)
    assert first.entry.options["timings_given"] is False
    second = build_engine("trt", small_graph(), precision="fp32", shapes=LADDER, timings=timings)
    assert second.entry.options["timings_given"] is True
    assert machine.told("set_timing_cache") == [(b"", False), (timings, False)]
    assert "ERROR_ON_TIMING_CACHE_MISS" in machine.told("build")[1][0]
    with pytest.raises(EngineError, match="timing cache is from another GPU or version"):
        build_engine("trt", small_graph(), precision="fp32", shapes=LADDER, timings=b"foreign")


def test_what_widens_a_plan(install: Callable, build: Callable, tmp_path: Path) -> None:
    machine = install("10.13.2.6")
    bundle = bundle_of(small_graph(), tmp_path, LADDER, build, version_compatible=True, hardware="ampere-plus")
    names, level, *_ = machine.told("build")[0]
    assert "VERSION_COMPATIBLE" in names
    assert level == "AMPERE_PLUS"
    later = install("10.16.1.11")
    later.name, later.capability = "NVIDIA A100", (8, 0)
    with open_engine(bundle) as engine:
        assert engine.infer(np.zeros((1, 16, 24, 3), np.uint8)).labels.max() == 0
    assert later.told("deserialize") == [(True,)]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"name": "NVIDIA A100"}, r"another GPU, NVIDIA H100 80GB HBM3 \(9.0\), and here is NVIDIA A100 \(9.0\)"),
        ({"capability": (8, 6)}, r"here is NVIDIA H100 80GB HBM3 \(8.6\)"),
        ({"version": "10.14.1.48"}, "another version, tensorrt 10.13.2.6, and here is tensorrt 10.14.1.48"),
        ({"version": "11.4.0.106"}, "another version"),
        ({"driver": 12090}, "another driver, CUDA 13.0, and here is CUDA 12.9"),
    ],
)
def test_a_plan_is_refused_elsewhere(
    install: Callable, build: Callable, tmp_path: Path, change: dict[str, object], reason: str
) -> None:
    install()
    bundle = bundle_of(small_graph(), tmp_path, LADDER, build)
    here = install(str(change.pop("version", "10.13.2.6")))
    for name, value in change.items():
        setattr(here, name, value)
    with pytest.raises(EngineError, match=rf"{reason}.*: ddcat export BUNDLE --engine trt") as refusal:
        open_engine(bundle)
    assert "\n" not in str(refusal.value)
    assert not here.told("deserialize"), "no byte of it reaches TensorRT"


def test_a_later_driver_runs_it(install: Callable, build: Callable, tmp_path: Path) -> None:
    install()
    bundle = bundle_of(small_graph(), tmp_path, LADDER, build)
    install().driver = 13020
    open_engine(bundle).close()


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("parse", "does not accept the graph: reason of parse$"),
        ("parser", r"does not accept the graph: n1 \(Conv\): reason of the parser$"),
        ("profile", "does not accept the profile "),
        ("build", "TensorRT 10.13.2.6 built no plan: reason of build$"),
        ("deserialize", "does not load the plan: reason of deserialize$"),
    ],
)
def test_what_fails_gives_its_first_reason(install: Callable, fault: str, reason: str) -> None:
    machine = install()
    machine.fails.add(fault)
    with pytest.raises(EngineError, match=reason):
        build_engine("trt", small_graph(), precision="fp32", shapes=LADDER)


def test_what_fails_in_a_run(install: Callable, build: Callable, tmp_path: Path) -> None:
    machine = install()
    bundle = bundle_of(small_graph(), tmp_path, LADDER, build)
    images = np.zeros((1, 16, 24, 3), np.uint8)
    for fault, reason in (("execute", "TensorRT 10.13.2.6 failed"), ("cudaMemcpyAsync", "CUDA failed: cudaErrorStream")):
        machine.fails = {fault}
        with open_engine(bundle) as engine, pytest.raises(EngineError, match=reason):
            engine.infer(images)
        machine.pending.clear()
        machine.fails = set()
    with open_engine(bundle) as engine:
        pass
    with pytest.raises(EngineError, match="closed"):
        engine.infer(images)


@pytest.mark.parametrize("fault", ["cudaMalloc", "cudaHostAlloc", "set_tensor_address", "cudaGraphInstantiate"])
def test_a_request_that_fails_leaves_no_memory(install: Callable, build: Callable, tmp_path: Path, fault: str) -> None:
    machine = install()
    bundle = bundle_of(small_graph(), tmp_path, LADDER, build)
    images = np.zeros((1, 16, 24, 3), np.uint8)
    with open_engine(bundle) as engine:
        if fault == "cudaGraphInstantiate":
            machine.fails = {"execute"}  # the memory of this size is there, and stays
            with pytest.raises(EngineError):
                engine.infer(images)
            machine.pending.clear()
        before = set(machine.memory)
        machine.fails = {fault}
        for _ in range(2):
            with pytest.raises(EngineError, match="failed"):
                engine.infer(images)
        assert set(machine.memory) == before
        machine.fails = set()
        engine.infer(images)
    assert not machine.memory
    captured = len(machine.told("cudaStreamEndCapture"))
    assert captured == len(machine.told("cudaGraphDestroy")) == (3 if fault == "cudaGraphInstantiate" else 1)


def test_an_engine_that_is_refused_leaves_no_memory(install: Callable, build: Callable, tmp_path: Path) -> None:
    machine = install()
    bundle = bundle_of(small_graph(), tmp_path, LADDER, build)
    other = bundle.manifest.model_copy(update={"outputs": bundle.manifest.outputs[:1]})
    with pytest.raises(EngineError, match="but the manifest of small says labels"):
        open_engine(dataclasses.replace(bundle, manifest=other))
    machine.fails = {"cudaMalloc"}
    with pytest.raises(EngineError, match="CUDA failed"):
        open_engine(bundle)
    assert not machine.memory
    assert len(machine.told("cudaStreamDestroy")) == len(machine.told("cudaStreamCreateWithFlags")) == 3


def test_a_capture_that_fails_is_ended(install: Callable, build: Callable, tmp_path: Path) -> None:
    machine = install()
    stream = sys.modules  # the module is imported by the build below
    bundle = bundle_of(small_graph(), tmp_path, LADDER, build)
    cuda = stream["ddcat.engines.tensorrt.cuda"]

    def fail() -> None:
        raise EngineError("cannot be recorded")

    with pytest.raises(EngineError, match="cannot be recorded"):
        cuda.Stream().capture(fail)
    assert machine.captured is None
    assert bundle.manifest.engine.options["cuda_graphs"] is True


@pytest.mark.parametrize("told", ["Half", "Int8", "BFloat16"])
def test_another_precision_in_effect_is_refused(install: Callable, told: str) -> None:
    install().types = told
    with pytest.raises(EngineError, match=r"the plan computes in .* where fp32 was asked for"):
        build_engine("trt", small_graph(), precision="fp32", shapes=LADDER)


def test_no_gpu(install: Callable) -> None:
    install().gpus = 0
    with pytest.raises(EngineError, match=r"no GPU .* \(cudaErrorNoDevice\): .* ort and openvino run on a CPU"):
        check_possible("trt", "fp32")


@pytest.mark.parametrize(
    ("version", "precision", "reason"),
    [
        ("8.6.1", "bf16", "does not compute in bf16"),
        ("9.3.0", "fp32", "use 8.6, 10 or 11"),
        ("8.5.3", "fp32", "8.6"),
    ],
)
def test_versions_and_what_they_lack(
    monkeypatch: pytest.MonkeyPatch, install: Callable, version: str, precision: str, reason: str
) -> None:
    install("8.6.1")
    monkeypatch.setattr(sys.modules["tensorrt"], "__version__", version)
    with pytest.raises(EngineError, match=reason):
        check_possible("trt", precision)  # type: ignore[arg-type]


def test_without_tensorrt(monkeypatch: pytest.MonkeyPatch) -> None:
    doubles.forget_engine()
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(EngineError, match=r'the runtime of engine trt is not installed .*: pip install "\.\[gpu\]"'):
        check_possible("trt", "fp32")
