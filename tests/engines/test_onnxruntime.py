from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from ddcat.bundle import Bundle, write_bundle
from ddcat.choices import Precision
from ddcat.engines import onnxruntime, open_engine
from ddcat.engines.errors import EngineError
from ddcat.engines.onnxruntime import CPU, CUDA, OrtGraph
from ddcat_export.engines import build_engine, check_possible
from tests.bundles import small_graph


class Doubled:
    """A session that says that it runs somewhere else, or computes with another provider."""

    def __init__(self, session: object, provider: str) -> None:
        self._session, self._provider = session, provider

    def __getattr__(self, name: str) -> object:
        return getattr(self._session, name)

    def get_providers(self) -> list[str]:
        return [self._provider, CPU]


@pytest.fixture
def gpu_build(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[object]]:
    """Stand in for onnxruntime-gpu: sessions run on the CPU all the same, and claim the provider that is given."""

    def pretend(claimed: str) -> list[object]:
        asked: list[object] = []
        real = onnxruntime.onnxruntime.InferenceSession

        def session(content: bytes, options: object, providers: list[object]) -> Doubled:
            asked.extend(providers)
            return Doubled(real(content, options, providers=[CPU]), claimed)

        monkeypatch.setattr(onnxruntime.onnxruntime, "InferenceSession", session)
        monkeypatch.setattr(onnxruntime.onnxruntime, "get_available_providers", lambda: [CUDA, CPU])
        monkeypatch.setattr(onnxruntime.onnxruntime, "preload_dlls", lambda: asked.append("libraries"))
        return asked

    return pretend


def test_a_graph_before_its_bundle(bundle: Bundle, oracle: Callable) -> None:
    images = np.random.default_rng(1).integers(0, 256, (6, 3, 700, 3)).astype(np.uint8)  # no shapes bind it yet
    with OrtGraph(bundle.files["model.onnx"], threads=1) as graph:
        np.testing.assert_array_equal(graph.run(images).labels, oracle(images)[0])
        with pytest.raises(EngineError, match="ONNX Runtime failed on images of shape"):
            graph.run(images.astype(np.float32))


def test_what_a_build_says_of_itself(bundle: Bundle) -> None:
    manifest = bundle.manifest
    built = build_engine("ort", bundle.files["model.onnx"], precision="fp32", shapes=manifest.shapes)
    assert built.files == {}
    assert (built.inputs, built.outputs, built.entry) == (manifest.inputs, manifest.outputs, manifest.engine)


def test_settings_are_recorded(bundle: Bundle) -> None:
    with open_engine(bundle, threads=1) as engine:
        about = engine.description
    assert {
        "threads": 1,
        "spinning": False,
        "optimization": "all",
        "arena": True,
        "memory_pattern": False,
    }.items() <= about.items()


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_what_cannot_run_on_a_cpu_is_refused_at_once(bundle: Bundle, precision: Precision) -> None:
    with pytest.raises(EngineError, match=f"does not compute in {precision} on a CPU, only in fp32 and int8: it has no "):
        check_possible("ort", precision)
    with pytest.raises(EngineError, match=precision):
        build_engine("ort", b"never looked at", precision=precision, shapes=bundle.manifest.shapes)


def test_int8_on_a_gpu_is_tensorrt_s(gpu_build: Callable) -> None:
    gpu_build(CUDA)
    check_possible("ort", "fp16")
    with pytest.raises(EngineError, match=r"does not compute in int8 on a GPU, .*TensorRT"):
        check_possible("ort", "int8")


def test_a_silent_fall_back_is_refused(bundle: Bundle, gpu_build: Callable) -> None:
    asked = gpu_build(CPU)
    with pytest.raises(EngineError, match=f"fell back to {CPU} where {CUDA} was asked for"):
        build_engine("ort", bundle.files["model.onnx"], precision="fp32", shapes=bundle.manifest.shapes)
    libraries, (provider, options) = asked
    assert (libraries, provider) == ("libraries", CUDA)
    assert options == {"cudnn_conv_algo_search": "HEURISTIC", "use_tf32": "0"}


def test_a_layer_that_fell_back_is_refused(bundle: Bundle, gpu_build: Callable) -> None:
    gpu_build(CUDA)
    with pytest.raises(EngineError, match=f"computes 1 of 1 convolutions and products with {CPU} where {CUDA} was asked for"):
        build_engine("ort", bundle.files["model.onnx"], precision="fp32", shapes=bundle.manifest.shapes)


def test_a_bundle_for_a_gpu_names_the_extra_elsewhere(bundle: Bundle, tmp_path: Path) -> None:
    entry = bundle.manifest.engine.model_copy(update={"provider": CUDA})
    other = write_bundle(tmp_path / "other", bundle.manifest.model_copy(update={"engine": entry}), bundle.files)
    with pytest.raises(EngineError, match=rf'this onnxruntime has no {CUDA}, only .*pip install "\.\[gpu\]"'):
        open_engine(other)


def test_a_graph_that_is_too_new_for_the_runtime_is_one_line_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    model = onnx.load_model_from_string(small_graph())
    model.opset_import[0].version = 999
    said = r"it is of opset 999, and onnxruntime \S+ reads ONNX up to opset \d+: install a newer"
    with pytest.raises(EngineError, match=said) as told:
        OrtGraph(model.SerializeToString(), threads=1)
    assert len(str(told.value)) < 200

    def refuse(*arguments: object, **options: object) -> None:
        """As 1.20.1 refuses what export writes."""
        raise RuntimeError(
            "[ONNXRuntimeError] : 1 : FAIL : model_load_utils.h:46 ONNX Runtime only *guarantees* support for models stamped "
            "with official released onnx opset versions. Opset 22 is under development and support for this is limited. "
            "Current official support for domain ai.onnx is till opset 21."
        )

    monkeypatch.setattr(onnxruntime.onnxruntime, "InferenceSession", refuse)
    with pytest.raises(EngineError, match=r"it is of opset 22, .* up to opset 21: install onnxruntime 1\.21 or newer$"):
        OrtGraph(small_graph(), threads=1)
