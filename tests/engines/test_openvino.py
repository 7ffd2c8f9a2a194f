import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ddcat.engines import open_engine, openvino
from ddcat.engines.errors import EngineError
from ddcat.engines.openvino import OpenVinoGraph, cache_folder
from ddcat_export.engines import check_possible
from tests.bundles import small_graph


class Compiled:
    """A compiled model that computes in something else than it was asked to."""

    def __init__(self, compiled: object, hint: str) -> None:
        self._compiled, self._hint = compiled, hint

    def __getattr__(self, name: str) -> object:
        return getattr(self._compiled, name)

    def get_property(self, name: str) -> object:
        if name == "INFERENCE_PRECISION_HINT":
            return getattr(openvino.ov.Type, self._hint)
        return self._compiled.get_property(name)  # type: ignore[attr-defined]


def test_the_outputs_of_a_batch_are_kept_when_the_next_is_computed(build: Callable, oracle: Callable) -> None:
    batches = np.random.default_rng(2).integers(0, 256, (2, 4, 12, 13, 3)).astype(np.uint8)
    batches.flags.writeable = False  # as decoded images are
    with open_engine(build(small_graph(), "openvino"), threads=2) as engine:
        assert (engine.description["hint"], engine.description["streams"]) == ("latency", 1)
        found = [engine.infer(images[:, ::-1]) for images in batches]
    for images, outputs in zip(batches, found, strict=True):
        labels, logits = oracle(images[:, ::-1])
        np.testing.assert_array_equal(outputs.labels, labels)
        assert outputs.logits is not None
        np.testing.assert_allclose(outputs.logits, logits, rtol=1e-6)


def test_the_cache_is_the_user_s_and_each_graph_has_its_own(build: Callable, cache: Path) -> None:
    bundles = [build(small_graph(logits=logits), "openvino", name=f"{logits}") for logits in (True, False)]
    assert not cache.exists()  # what only looks leaves nothing
    for bundle in bundles:
        for _ in range(2):
            with open_engine(bundle, threads=1) as engine:
                assert engine.description["cache"] is True
                assert engine.infer(np.zeros((1, 8, 8, 3), np.uint8)).labels.max() == 0
    folders = {cache / "ddcat" / "openvino" / bundle.manifest.files["model.onnx"].sha256 for bundle in bundles}
    assert set((cache / "ddcat" / "openvino").iterdir()) == folders
    assert all(list(folder.glob("*.blob")) for folder in folders)
    assert {stat.S_IMODE(folder.stat().st_mode) for folder in folders} == {0o700}
    for bundle in bundles:
        assert {file.name for file in bundle.path.iterdir()} == {"model.onnx", "manifest.json"}


def test_a_cache_that_others_can_write_to_is_refused(cache: Path) -> None:
    folder = cache_folder(b"graph")
    assert folder is not None
    folder.chmod(0o777)
    with pytest.raises(EngineError, match=f"{folder} keeps compiled models, but other users can write to it"):
        cache_folder(b"graph")


def test_no_home_no_cache(cache: Path) -> None:
    cache.write_text("not a folder")
    assert cache_folder(b"graph") is None


@pytest.mark.parametrize(("asked", "found"), [("fp32", "bf16"), ("fp32", "fp16")])
def test_another_precision_in_effect_is_refused(asked: str, found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = openvino.ov.Core.compile_model
    hint = {"bf16": "bf16", "fp16": "f16"}[found]
    monkeypatch.setattr(openvino.ov.Core, "compile_model", lambda core, *arguments: Compiled(real(core, *arguments), hint))
    with pytest.raises(EngineError, match=f"OpenVINO computes in {found} where {asked} was asked for"):
        OpenVinoGraph(small_graph(), precision=asked)


def test_a_cpu_without_the_instructions_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino.ov.Core, "get_property", lambda core, device, name: ["FP32", "INT8", "EXPORT_IMPORT"])
    check_possible("openvino", "int8")
    with pytest.raises(EngineError, match="in bf16 on this CPU, which lacks the instructions, only in fp32 and int8"):
        check_possible("openvino", "bf16")


def test_a_graph_before_its_bundle_refuses_other_types() -> None:
    with OpenVinoGraph(small_graph(), precision="fp32", threads=1) as graph:
        assert graph.run(np.zeros((7, 3, 500, 3), np.uint8)).labels.shape == (7, 3, 500)
        with pytest.raises(EngineError, match="images of float32: use uint8"):
            graph.run(np.zeros((1, 8, 8, 3), np.float32))
        with pytest.raises(EngineError, match=r"OpenVINO failed on images of shape \(1, 8, 8, 4\): \S"):
            graph.run(np.zeros((1, 8, 8, 4), np.uint8))
