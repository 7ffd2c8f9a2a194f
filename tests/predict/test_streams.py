"""Several images are computed at the same time: the same masks, and a fault of one ends the run."""

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import ddcat
from ddcat.bundle import Bundle
from ddcat.engines.base import Outputs
from ddcat.engines.errors import EngineError
from ddcat.engines.predictor import Predictor
from ddcat.predict import run
from ddcat.predict.compute import useful_streams
from ddcat.predict.run import predict
from ddcat.predict.sources import Source, find_sources
from tests.bundles import small_graph
from tests.predict.test_predict import digests

FORMS = ["png", "coco", "geojson"]


@pytest.fixture(params=["ort", "openvino"])
def any_bundle(request: pytest.FixtureRequest, build: Callable[..., Bundle]) -> Bundle:
    pytest.importorskip({"ort": "onnxruntime"}.get(request.param, request.param))
    return build(small_graph(confidence=True), request.param)


def test_threads_that_share_an_engine_get_its_answers(any_bundle: Bundle) -> None:
    images = np.random.default_rng(0).integers(0, 256, (40, 1, 40, 50, 3), np.uint8)
    with ddcat.open_bundle(any_bundle.path, threads=2) as alone:
        assert (alone.streams, alone.description["streams"]) == (1, 1)
        expected = [alone.infer(image) for image in images]
    found: dict[int, Outputs] = {}
    with ddcat.open_bundle(any_bundle.path, threads=2, streams=2) as shared:
        assert (shared.streams, shared.description["streams"], shared.description["threads"]) == (2, 2, 2)

        def work(first: int) -> None:
            for place in range(first, len(images), 2):
                found[place] = shared.infer(images[place])

        threads = [threading.Thread(target=work, args=(first,)) for first in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for place, outputs in enumerate(expected):
        assert np.array_equal(found[place].labels, outputs.labels)
        assert np.array_equal(found[place].logits, outputs.logits)
        assert np.array_equal(found[place].confidence, outputs.confidence)


def test_a_run_in_several_streams_has_the_bytes_of_one(
    any_bundle: Bundle, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = find_sources([str(scenes)])
    predict(any_bundle.path, sources, tmp_path / "several", formats=FORMS, threads=2)
    monkeypatch.setattr(run, "useful_streams", lambda sources, **about: 1)
    predict(any_bundle.path, sources[:5], tmp_path / "one", formats=FORMS, threads=2)  # and is resumed by the other
    monkeypatch.undo()
    predict(any_bundle.path, sources, tmp_path / "one", formats=FORMS, threads=2)
    assert digests(tmp_path / "several") == digests(tmp_path / "one")


def test_images_are_computed_at_the_same_time(
    bundle: Bundle, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    together, infer = threading.Barrier(2), Predictor.infer

    def meet(self: Predictor, images: np.ndarray) -> Outputs:
        together.wait(30)  # it breaks where one waits for another
        return infer(self, images)

    monkeypatch.setattr(Predictor, "infer", meet)
    assert predict(bundle.path, find_sources([str(scenes)]), tmp_path / "out", threads=2)["images"] == 12


def test_a_fault_in_one_stream_ends_the_run_with_its_cause(
    bundle: Bundle, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources, out, infer, calls = find_sources([str(scenes)]), tmp_path / "out", Predictor.infer, []

    def fail(self: Predictor, images: np.ndarray) -> Outputs:
        calls.append(1)
        if len(calls) == 5:
            raise EngineError("the runtime failed")
        return infer(self, images)

    monkeypatch.setattr(Predictor, "infer", fail)
    with pytest.raises(EngineError, match=r"^the runtime failed$"):
        predict(bundle.path, sources, out, threads=2)
    records = list(out.rglob("records/**/*.json"))
    assert 0 < len(records) < 12
    assert not (out / "summary.json").exists()
    monkeypatch.undo()
    predict(bundle.path, sources, out, threads=2)
    predict(bundle.path, sources, tmp_path / "whole", threads=2)
    assert digests(out) == digests(tmp_path / "whole")


def test_an_engine_of_streams_has_one_of_all_threads_for_large_images(bundle: Bundle) -> None:
    with ddcat.open_bundle(bundle.path, threads=2, streams=2) as several:
        whole = several.undivided()
        assert (whole.streams, whole.description["threads"]) == (1, 2)
        assert several.undivided() is whole
        assert whole.undivided() is whole
    with pytest.raises(EngineError, match="closed"):
        whole.infer(np.zeros((1, 8, 8, 3), np.uint8))


@pytest.mark.parametrize(
    ("names", "batch", "threads", "streams"),
    [
        (["a.png"], 1, 8, 1),  # one image: all threads
        (["a.png", "b.png", "c.png"], 1, 8, 3),
        (["a.png", "b.png", "c.png"], 2, 8, 2),
        ([f"{place}.png" for place in range(99)], 1, 2, 2),
        ([f"{place}.png" for place in range(99)], 1, 64, 4),
        (["a.mp4"], 8, 64, 4),
        (["a.tif", "b.tif"], 1, 8, 1),
    ],
)
def test_streams_that_are_useful(names: list[str], batch: int, threads: int, streams: int) -> None:
    assert useful_streams([Source(name, name) for name in names], batch=batch, threads=threads) == streams
