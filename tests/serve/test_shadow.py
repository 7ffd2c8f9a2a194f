"""A shadow is compared with the model that answers, and changes no answer."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from ddcat.bundle import Bundle, write_bundle
from ddcat.engines.base import CheckedEngine, Outputs
from tests.bundles import small_bundle, small_graph, small_manifest
from tests.serve.payloads import as_labels
from tests.serve.processes import wait_for
from tests.serve.repository_server import answering, folder, start

__all__ = ["folder", "start"]  # fixtures


def shifted(path: Path) -> Bundle:
    """A bundle that says class 0 for green, whose pixels the small one calls 2."""
    graph = onnx.load_from_string(small_graph())
    for tensor in graph.graph.initializer:
        if tensor.name == "weight":
            values = onnx.numpy_helper.to_array(tensor).copy()
            values[[0, 2]] = values[[2, 0]]
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, "weight"))
        if tensor.name == "bias":
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.array([0, 0, 100, 0], np.float32), "bias"))
    content = graph.SerializeToString()
    return write_bundle(path, small_manifest(content), {"model.onnx": content})


def test_a_shadow_is_compared_and_answers_only_after_the_second_load(
    start: Callable, folder: Path, picture: np.ndarray, oracle: Callable
) -> None:
    server = start(shadow=0.5)
    other = shifted(folder / "seg" / "2")
    labels, logits = oracle(picture[None])
    labels, swapped = labels[0], logits[:, [2, 1, 0, 3]].argmax(1)[0]
    first = server.post("load").json()
    assert (first["version"], first["before"], first["shadow"]) == ("1", "1", "2")
    for _ in range(8):
        answer = server.segment(picture)
        assert answer.headers["x-ddcat-version"] == "1"
        np.testing.assert_array_equal(as_labels(answer.content), labels)
    wait_for(lambda: server.metric('ddcat_shadow_images_total{model="seg",version="2"}') == 4)  # half of them
    equal = int((labels == swapped).sum())
    assert 0 < equal < labels.size
    assert server.metric('ddcat_shadow_equal_pixels_total{model="seg",version="2"}') == 4 * equal
    assert server.metric('ddcat_shadow_pixels_total{model="seg",version="2"}') == 4 * labels.size
    state, reason = server.index()["2"]
    assert (state, reason.startswith(f"shadow: {equal / labels.size:.4%} equal labels in 4 images (0 skipped, 0 failed)")) == (
        "LOADING", True,
    )  # fmt: skip
    assert server.client.get("/v2/models/seg/versions/2").status_code == 404
    assert server.metric('ddcat_swaps_total{model="seg"}') == 0
    second = server.post("load").json()
    assert (second["version"], second["before"], second["report"]["images"]) == ("2", "1", 4)
    answer = server.segment(picture)
    assert answer.headers["x-ddcat-bundle"] == other.digest
    np.testing.assert_array_equal(as_labels(answer.content), swapped)
    assert server.metric('ddcat_shadow_images_total{model="seg",version="2"}') is None


def test_a_shadow_ends_by_a_roll_back_or_another_load(start: Callable, folder: Path, picture: np.ndarray) -> None:
    server = start(shadow=1)
    shifted(folder / "seg" / "2")
    assert server.post("load").json()["shadow"] == "2"
    candidate = server.repository._places["seg"].shadow.candidate
    assert server.post("load", {"parameters": {"rollback": True}}).json()["version"] == "1"
    assert candidate.worker.state == "stopping"
    assert server.index() == {"1": ("READY", ""), "2": ("UNAVAILABLE", "")}
    assert server.post("load").json()["shadow"] == "2"
    small_bundle(folder / "seg" / "3")
    assert server.post("load").json()["shadow"] == "3"  # and no more 2
    assert server.index()["2"] == ("UNAVAILABLE", "")
    assert answering(server, picture)[0] == "1"


def test_a_shadow_that_fails_or_does_not_take_an_image_changes_no_answer(
    start: Callable, folder: Path, picture: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = start(shadow=1)
    content = small_graph(16, 24)
    write_bundle(folder / "seg" / "2", small_manifest(content, "small", 16, 24), {"model.onnx": content})
    assert server.post("load").json()["shadow"] == "2"
    assert server.segment(picture).status_code == 200  # of a size that the shadow does not take
    [(model, report)] = server.repository.shadows()
    assert (report.images, report.failed) == (0, 1)
    assert "no image was compared yet" in server.index()["2"][1]
    small = picture[:16, :24]
    infer = CheckedEngine.infer

    def broken(engine: CheckedEngine, images: np.ndarray) -> Outputs:
        if engine is model.engine:
            raise RuntimeError("broken")
        return infer(engine, images)

    monkeypatch.setattr(CheckedEngine, "infer", broken)
    assert server.segment(small).status_code == 200
    wait_for(lambda: server.repository.shadows()[0][1].failed == 2)
