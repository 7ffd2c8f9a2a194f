"""Images beyond the tiles of a bundle: cut, in the queue tile by tile, and answered as `ddcat predict` answers them."""

import asyncio
import io
import threading
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

import ddcat
from ddcat.bundle import Bundle, write_bundle
from ddcat.engines import Outputs
from ddcat.predict.run import predict
from ddcat.predict.sources import find_sources
from ddcat.preprocess import Resize
from ddcat_serve.errors import RequestError
from ddcat_serve.http.app import create_app
from ddcat_serve.inference.large_images import QueuedInference, admit_cut
from ddcat_serve.inference.model_registry import Models
from ddcat_serve.settings import Settings
from tests.bundles import BIAS, WEIGHTS, small_graph
from tests.serve.payloads import as_labels, as_png, refused
from tests.serve.test_abstain import RULE, SHADES
from tests.serve.tiled import TILES, noise, tiled_bundle


@pytest.fixture(scope="module")
def client(tiled_models: Models, client_of: Callable) -> httpx.Client:
    return client_of(create_app(tiled_models, Settings(max_pixels=100_000)))


def predicted(bundle: Path, image: np.ndarray, folder: Path) -> np.ndarray:
    folder.mkdir()
    Image.fromarray(image).save(folder / "a.png")
    predict(bundle, find_sources([str(folder / "a.png")]), folder / "out", formats=["png"])
    return np.asarray(Image.open(folder / "out/masks/a.png"))


@pytest.mark.parametrize("size", [(150, 211), (65, 64), (40, 300), (64, 64)])
def test_the_mask_is_that_of_predict(size: tuple[int, int], client: httpx.Client, tiled_path: Path, tmp_path: Path) -> None:
    image = noise(*size)
    expected = predicted(tiled_path, image, tmp_path / "in")
    response = client.post("/v1/segment", content=as_png(image))
    assert response.status_code == 200, response.text
    np.testing.assert_array_equal(as_labels(response.content), expected)
    assert response.headers["x-ddcat-shape"] == f"{size[0]}, {size[1]}"


def test_an_image_that_is_resized_first_has_the_mask_of_predict(serving: Callable, tmp_path: Path) -> None:
    bundle, image = tiled_bundle(tmp_path / "b", Resize(to=100)), noise(50, 70)
    response = serving(bundle.path).post("/v1/segment", content=as_png(image))
    np.testing.assert_array_equal(as_labels(response.content), predicted(bundle.path, image, tmp_path / "in"))


def test_a_form_may_mix_images_that_are_cut_and_others(client: httpx.Client, oracle: Callable) -> None:
    sent = [noise(100, 90), noise(20, 30), noise(30, 100)]
    files = [("image", (f"{place}.png", as_png(image), "image/png")) for place, image in enumerate(sent)]
    results = client.post("/v1/segment", files=files, headers={"Accept": "application/json"}).json()["results"]
    for image, found in zip(sent, results, strict=True):
        labels = oracle(image[None])[0][0]
        assert {entry["id"]: entry["area"] for entry in found["classes"]} == {
            label: int((labels == label).sum()) for label in np.unique(labels).tolist()
        }


def test_overlay_and_statistics_know_the_whole_image_once(client: httpx.Client, tiled_models: Models) -> None:
    model, image = tiled_models["tiled"]["1"], noise(90, 130)
    before = model.usage.statistics("tiled", "1")["inference_count"]
    response = client.post("/v1/segment", content=as_png(image), headers={"Accept": "image/png;view=overlay"})
    with Image.open(io.BytesIO(response.content)) as overlay:
        assert (overlay.mode, overlay.size) == ("RGB", (130, 90))
    assert model.usage.statistics("tiled", "1")["inference_count"] == before + 1


def test_confidence_is_that_of_the_blended_logits(build: Callable[..., Bundle], serving: Callable, tmp_path: Path) -> None:
    shades = {"weights": WEIGHTS / SHADES, "bias": BIAS / SHADES}  # some pixels are sure and others are not
    plain = build(small_graph(confidence=True, **shades), "ort", name="plain")
    preprocessing = plain.manifest.preprocessing.model_copy(update={"tiles": TILES})
    about = {"preprocessing": preprocessing, "abstention": RULE}
    path = write_bundle(tmp_path / "b", plain.manifest.model_copy(update=about), plain.files).path
    image = noise(90, 130)
    client, asked = serving(path), {"Accept": "image/png;view=confidence"}
    shown = np.asarray(Image.open(io.BytesIO(client.post("/v1/segment", content=as_png(image), headers=asked).content)))
    mask = as_labels(client.post("/v1/segment?abstain=true", content=as_png(image)).content)
    with ddcat.open_bundle(path, threads=1) as opened:
        outputs = opened.infer(image[None])  # the network sees one pixel at a time: tiles change nothing
        assert outputs.confidence is not None
        assert np.array_equal(mask, opened.predict(image, abstain=True))
    assert np.abs(shown - 255 * outputs.confidence[0]).max() <= 1
    assert 0.05 < (mask == 255).mean() < 0.9


def test_an_image_whose_tiles_cannot_be_done_in_time_is_refused_before_it_is_decoded(tiled_models: Models) -> None:
    model = tiled_models["tiled"]["1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model.worker._queue, "_slowdown", 1.0)
        patch.setattr(model.worker._queue, "_overhead", 0.1)
        patch.setattr(model.worker._queue, "_rate", 36 * 64 * 64 / 3.6)
        first = admit_cut(model, (300, 300), 6.0, max_bytes=2**30)
        with pytest.raises(RequestError, match="deadline is in 1 s") as late:
            admit_cut(model, (300, 300), 1.0, max_bytes=2**30)
        assert late.value.status == 413
        with pytest.raises(RequestError, match="cannot be answered in time now") as busy:  # the first is before it
            admit_cut(model, (300, 300), 6.0, max_bytes=2**30)
        assert busy.value.status == 429
        first.stop()
        admit_cut(model, (300, 300), 6.0, max_bytes=2**30).stop()
    assert not model.planned
    with pytest.raises(RequestError, match=r"need \d+ bytes; expected at most 1000") as large:
        admit_cut(model, (300, 300), 1.0, max_bytes=1000)
    assert large.value.status == 413


def test_others_are_computed_between_the_tiles(tiled_models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    model, order = tiled_models["tiled"]["1"], []
    compute, begun, go = model.engine.infer, threading.Event(), threading.Event()

    def infer(images: np.ndarray) -> Outputs:
        order.append(images.shape[1:3])
        begun.set()
        assert go.wait(10)
        return compute(images)

    monkeypatch.setattr(model.engine, "infer", infer)
    large = threading.Thread(target=QueuedInference(model, timeout=30.0).outputs, args=(noise(300, 300),))
    large.start()
    assert begun.wait(10)
    small = [model.worker.submit(noise(20, 30)[None], 31.0) for _ in range(3)]
    go.set()
    for job in small:
        job.result.result(10)
    tiles_before = order.index((20, 30))
    large.join(30)
    assert tiles_before <= 2
    assert order.count((64, 64)) == 36


def test_the_deadline_ends_the_tiles(tiled_models: Models, client_of: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    model, calls = tiled_models["tiled"]["1"], []
    compute, pause = model.engine.infer, threading.Event()

    def infer(images: np.ndarray) -> Outputs:
        calls.append(1)
        pause.wait(0.2)
        return compute(images)

    monkeypatch.setattr(model.engine, "infer", infer)
    response = client_of(create_app(tiled_models, Settings())).post("/v1/segment?timeout=0.5", content=as_png(noise(300, 300)))
    assert refused(response)[0] == 504
    asyncio.run(asyncio.sleep(0.5))
    assert 1 <= len(calls) < 36
    assert not model.planned
    assert len(model.worker._queue) == 0


def test_a_full_queue_is_waited_for(tiled_models: Models, oracle: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    model, image = tiled_models["tiled"]["1"], noise(100, 100)
    monkeypatch.setattr(model.worker._queue, "_max_pixels", 1)
    others = [model.worker.submit(noise(30, 30)[None], 5.0)]
    np.testing.assert_array_equal(QueuedInference(model, timeout=5.0).outputs(image).labels, oracle(image[None])[0])
    assert all(job.result.done() for job in others)
