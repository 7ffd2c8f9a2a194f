import asyncio
import base64
import contextlib
import io
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import httpx
import numpy as np
import pytest
import simplejpeg
from fastapi import FastAPI
from PIL import Image

from ddcat.bundle import Bundle
from ddcat.passport import Found
from ddcat_serve.app import create_app
from ddcat_serve.batching import Queue
from ddcat_serve.engines import Outputs
from ddcat_serve.errors import EngineError, ServeError
from ddcat_serve.images import decode
from ddcat_serve.models import Models, ServedModel, Source, load_models, parse_source
from ddcat_serve.settings import Settings, read_settings
from ddcat_serve.worker import Worker

INFER = {"inputs": [{"name": "image", "shape": [1, 16, 32, 3], "datatype": "UINT8", "data": [7] * (16 * 32 * 3)}]}


def as_png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def as_labels(content: bytes) -> np.ndarray:
    image = Image.open(io.BytesIO(content))
    assert image.mode == "P"
    return np.asarray(image)


def refused(response: httpx.Response) -> tuple[int, str]:
    assert list(response.json()) == ["error"]
    return response.status_code, response.json()["error"]


def test_a_png_comes_back_as_the_engine_s_labels(
    client: httpx.Client, bundle: Bundle, oracle: Callable, picture: np.ndarray
) -> None:
    response = client.post("/v1/segment", content=as_png(picture), headers={"Content-Type": "image/png"})
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "image/png"
    assert response.headers["x-ddcat-model"] == "small"
    assert response.headers["x-ddcat-bundle"] == bundle.digest
    np.testing.assert_array_equal(as_labels(response.content), oracle(picture[None])[0][0])


def test_a_jpeg_comes_back_as_the_labels_of_its_pixels(client: httpx.Client, oracle: Callable, picture: np.ndarray) -> None:
    content = simplejpeg.encode_jpeg(picture)
    response = client.post("/v1/segment", content=content, headers={"Content-Type": "image/jpeg"})
    pixels = decode(content, max_pixels=10_000)
    np.testing.assert_array_equal(as_labels(response.content), oracle(pixels[None])[0][0])


def test_a_form_with_one_file(client: httpx.Client, oracle: Callable, picture: np.ndarray) -> None:
    response = client.post("/v1/segment", files={"image": ("x.png", as_png(picture), "image/png")})
    assert response.status_code == 200, response.text
    np.testing.assert_array_equal(as_labels(response.content), oracle(picture[None])[0][0])


def test_forms_that_are_not_of_files_alone(client: httpx.Client, picture: np.ndarray) -> None:
    file = ("x.png", as_png(picture), "image/png")
    assert refused(client.post("/v1/segment", files={"a": file}, data={"model": "small"}))[0] == 400
    whole = client.build_request("POST", "http://test/v1/segment", files={"a": file})
    kind = whole.headers["content-type"]
    for body, header in (
        (whole.read()[:-60], kind),
        (b"nothing", kind),
        (b"", kind),
        (whole.read(), "multipart/form-data"),
        (b"--x\r\nContent-Disposition: form-data\r\n\r\n1\r\n--x--\r\n", "multipart/form-data; boundary=x"),
    ):
        status, message = refused(client.post("/v1/segment", content=body, headers={"Content-Type": header}))
        assert (status, message[:30]) == (400, "the multipart body is not of f")


@pytest.mark.parametrize("accept", ["image/png", "application/json"])
def test_a_form_with_several_files(client: httpx.Client, oracle: Callable, picture: np.ndarray, accept: str) -> None:
    sent = [picture, picture[:20], picture[:, :31]]
    files = [("image", (f"{place}.png", as_png(image), "image/png")) for place, image in enumerate(sent)]
    response = client.post("/v1/segment", files=files, headers={"Accept": accept})
    assert response.status_code == 200, response.text
    results = response.json()["results"]
    assert [(found["filename"], found["size"]) for found in results] == [
        (f"{place}.png", list(image.shape[:2])) for place, image in enumerate(sent)
    ]
    for image, found in zip(sent, results, strict=True):
        labels = oracle(image[None])[0][0]
        if accept == "image/png":
            np.testing.assert_array_equal(as_labels(base64.b64decode(found["data"])), labels)
        else:
            assert {entry["id"]: entry["area"] for entry in found["classes"]} == {
                label: int((labels == label).sum()) for label in np.unique(labels).tolist()
            }


def test_the_images_of_a_form_have_one_limit_of_pixels(client: httpx.Client) -> None:
    """Else many that compress well, each within the limit, would be decoded at once."""
    flat = as_png(np.zeros((40, 50, 3), np.uint8))
    files = [("image", (f"{place}.png", flat, "image/png")) for place in range(3)]
    assert client.post("/v1/segment", files=files[:2]).status_code == 200
    message = "the images have 6000 pixels; at most 5000 in all are taken"
    assert refused(client.post("/v1/segment", files=files)) == (413, message)


def test_the_answer_is_what_is_accepted(client: httpx.Client, oracle: Callable, picture: np.ndarray) -> None:
    labels = oracle(picture[None])[0][0]
    answers = {
        accept: client.post("/v1/segment", content=as_png(picture), headers={"Accept": accept})
        for accept in ("application/octet-stream", "application/json", "image/png;view=overlay", "image/png;view=confidence")
    }
    raw, rle, overlay, confidence = answers.values()
    assert raw.headers["x-ddcat-shape"] == "37, 53"
    np.testing.assert_array_equal(np.frombuffer(raw.content, np.uint8).reshape(37, 53), labels)
    assert rle.json()["size"] == [37, 53]
    assert Image.open(io.BytesIO(overlay.content)).mode == "RGB"
    assert refused(confidence)[0] == 406  # the bundle gives none
    assert all(answer.headers["x-ddcat-passport"] == "none" for answer in (raw, rle, overlay))


def test_confidence_where_the_bundle_gives_it(
    build: Callable[..., Bundle], make_graph: Callable[..., bytes], client_of: Callable, picture: np.ndarray
) -> None:
    bundle = build(make_graph(logits=True, confidence=True), "ort")
    with load_models([bundle.path], settings=Settings(), threads=1) as models:
        client = client_of(create_app(models, Settings()))
        response = client.post("/v1/segment", content=as_png(picture), headers={"Accept": "image/png;view=confidence"})
    assert response.status_code == 200, response.text
    assert Image.open(io.BytesIO(response.content)).size == (53, 37)


def test_bad_images(client: httpx.Client, picture: np.ndarray) -> None:
    for content, status in (
        (b"", 415),
        (b"GIF89a...", 415),
        (b'{"image": 1}', 415),
        (as_png(picture)[:200], 400),
        (as_png(np.zeros((100, 100, 3), np.uint8)), 413),
        (as_png(np.zeros((7, 20, 3), np.uint8)), 400),
    ):
        assert refused(client.post("/v1/segment", content=content))[0] == status
    message = refused(client.post("/v1/segment", content=as_png(np.zeros((7, 20, 3), np.uint8))))[1]
    assert message == "height 7 does not fit this model, which takes height 8 to 640, width 8 to 640 and batches of 1 to 4"


def test_long_bodies_are_refused(client: httpx.Client) -> None:
    assert refused(client.post("/v1/segment", content=b"x" * 65_537)) == (413, "the body is longer than 65536 bytes")
    assert refused(client.post("/v2/models/small/infer", content=b" " * 65_537))[0] == 413
    assert refused(client.post("/v1/segment", content=b"x", headers={"Content-Encoding": "gzip"}))[0] == 415


def test_a_body_of_no_declared_length_is_read_no_further_than_the_limit(models: Models) -> None:
    sent = []

    async def chunks() -> AsyncIterator[bytes]:
        for number in range(1000):
            sent.append(number)
            yield b"x" * 1024

    async def post() -> httpx.Response:
        transport = httpx.ASGITransport(create_app(models, Settings(max_bytes=65536)))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as opened:
            return await opened.post("/v1/segment", content=chunks())

    assert refused(asyncio.run(post()))[0] == 413
    assert len(sent) == 65


def test_routes_and_names_that_are_none(client: httpx.Client, picture: np.ndarray) -> None:
    assert refused(client.get("/nowhere")) == (404, "GET /nowhere: Not Found; openapi.json lists what there is")
    assert refused(client.get("/v2/models/small/"))[0] == 404
    response = client.get("/v1/segment")
    assert refused(response)[0] == 405
    assert response.headers["allow"] == "POST"
    assert refused(client.get("/v2/models/other")) == (404, "no model is named 'other'; there is small")
    assert refused(client.get("/v2/models/other/ready"))[0] == 404
    assert refused(client.post("/v2/models/other/infer", content=b"{}"))[0] == 404
    assert refused(client.get("/v2/models/small/versions/2"))[0] == 404
    assert refused(client.post("/v1/segment?model=other", content=as_png(picture)))[0] == 404


def test_several_models(
    make_bundle: Callable[..., Bundle], client_of: Callable[[FastAPI], httpx.Client], oracle: Callable, picture: np.ndarray
) -> None:
    bundles = [make_bundle("any"), make_bundle("fixed", 37, 53, logits=False)]
    with load_models([bundle.path for bundle in bundles], settings=Settings(), threads=1) as models:
        client = client_of(create_app(models, Settings()))
        assert refused(client.post("/v1/segment", content=as_png(picture))) == (
            400,
            "several models are served: choose one with ?model=, of any, fixed",
        )
        for bundle in bundles:
            response = client.post(f"/v1/segment?model={bundle.manifest.name}", content=as_png(picture))
            np.testing.assert_array_equal(as_labels(response.content), oracle(picture[None])[0][0])
            assert response.headers["x-ddcat-bundle"] == bundle.digest
        message = refused(client.post("/v1/segment?model=fixed", content=as_png(picture[:36])))
        assert message == (400, "height 36 does not fit this model, which takes height 37, width 53 and batches of 1 to 4")


def test_bundles_of_one_name_are_versions(
    make_bundle: Callable[..., Bundle], client_of: Callable[[FastAPI], httpx.Client], picture: np.ndarray
) -> None:
    free, fixed = make_bundle("any"), make_bundle("other", 37, 53, logits=False)
    with load_models([free.path, Source(fixed.path, "any")], settings=Settings(), threads=1) as models:
        client = client_of(create_app(models, Settings()))
        assert client.get("/v2/models/any").json()["versions"] == ["1", "2"]
        assert client.get("/v2/models/any").json()["parameters"]["bundle"] == fixed.digest  # the newest
        for version, bundle in (("1", free), ("2", fixed)):
            assert client.get(f"/v2/models/any/versions/{version}").json()["parameters"]["bundle"] == bundle.digest
            response = client.post(f"/v1/segment?version={version}", content=as_png(picture))
            assert response.headers["x-ddcat-bundle"] == bundle.digest
            assert response.headers["x-ddcat-version"] == version
        assert client.post("/v1/segment", content=as_png(picture)).headers["x-ddcat-version"] == "2"


def test_names_of_bundles(tmp_path: Path) -> None:
    assert parse_source("a/b") == Source(Path("a/b"))
    assert parse_source("x=a/b") == Source(Path("a/b"), "x")
    assert parse_source("a/x=b") == Source(Path("a/x=b"))
    (tmp_path / "x=y").mkdir()
    with contextlib.chdir(tmp_path):
        assert parse_source("x=y") == Source(Path("x=y"))


class Stuck:
    """An engine that answers when it is let go, or fails."""

    inputs = outputs = ()
    description: ClassVar = {"threads": 1}

    def __init__(self, error: Exception | None = None) -> None:
        self._error = error
        self.go = threading.Event()
        self.entered = threading.Event()

    def infer(self, images: np.ndarray) -> Outputs:
        self.entered.set()
        assert self.go.wait(10)
        if self._error is not None:
            raise self._error
        return Outputs(labels=images[..., 0] // 64)

    def close(self) -> None:
        pass


@contextlib.contextmanager
def stuck_models(bundle: Bundle, engine: Stuck, **settings: Any) -> Iterator[tuple[Models, Settings]]:
    """A server's models with that engine behind the bundle."""
    chosen = Settings(**settings)
    worker = Worker(
        "small",
        engine,  # type: ignore[arg-type]
        reopen=lambda: engine,  # type: ignore[arg-type,return-value]
        queue=Queue(max_pixels=chosen.queue_pixels, batch_pixels=chosen.batch_pixels),
        hangs_after=chosen.hangs_after,
    )
    model = ServedModel(bundle, name="small", version="1", passport=Found(None, "none"), worker=worker)
    try:
        yield {"small": {"1": model}}, chosen
    finally:
        engine.go.set()
        worker.close(5)


@pytest.mark.parametrize("error", [EngineError("/secret/path broke"), MemoryError("out")])
def test_a_failing_engine_is_a_500_that_says_no_more_than_it_should(
    bundle: Bundle, client_of: Callable, picture: np.ndarray, error: Exception
) -> None:
    stuck = Stuck(error)
    stuck.go.set()
    with stuck_models(bundle, stuck) as (models, settings):
        client = client_of(create_app(models, settings))
        status, message = refused(client.post("/v1/segment", content=as_png(picture), headers={"X-Request-Id": "r-1"}))
    assert status == 500
    engine = "the engine failed; the server's log says why under request r-1"
    assert message == (engine if isinstance(error, EngineError) else "the server failed; its log says why under request r-1")


def test_health_answers_while_the_engine_is_busy(bundle: Bundle, picture: np.ndarray) -> None:
    stuck = Stuck()

    async def requests(models: Models, settings: Settings) -> list[bytes]:
        transport = httpx.ASGITransport(create_app(models, settings))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            masks = [asyncio.create_task(client.post("/v1/segment", content=as_png(picture[: 20 + n]))) for n in range(10)]
            for _ in range(20):
                assert (await client.get("/v2/health/live")).status_code == 200
            assert not any(mask.done() for mask in masks)
            stuck.go.set()
            return [(await mask).content for mask in masks]

    with stuck_models(bundle, stuck) as (models, settings):
        for number, mask in enumerate(asyncio.run(requests(models, settings))):
            np.testing.assert_array_equal(as_labels(mask), picture[: 20 + number, :, 0] // 64)


def test_a_full_queue_is_a_429_at_once(bundle: Bundle, picture: np.ndarray) -> None:
    stuck = Stuck()

    async def requests(models: Models, settings: Settings) -> list[httpx.Response]:
        transport = httpx.ASGITransport(create_app(models, settings))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            first = asyncio.create_task(client.post("/v1/segment", content=as_png(picture)))
            await asyncio.to_thread(stuck.entered.wait, 10)
            second = asyncio.create_task(client.post("/v1/segment", content=as_png(picture)))
            while not models["small"]["1"].worker.waiting_pixels:
                await asyncio.sleep(0.01)
            refusal = await client.post("/v1/segment", content=as_png(picture))
            tensor = await client.post("/v2/models/small/infer", json=INFER)
            stuck.go.set()
            return [refusal, tensor, await first, await second]

    with stuck_models(bundle, stuck, queue_pixels=2000) as (models, settings):
        refusal, tensor, first, second = asyncio.run(requests(models, settings))
    assert (first.status_code, second.status_code) == (200, 200)
    for response in (refusal, tensor):
        status, message = refused(response)
        assert status == 429
        assert "too much waits already; try again in 1 s" in message
        assert response.headers["retry-after"] == "1"


def test_late_and_draining(bundle: Bundle, picture: np.ndarray) -> None:
    stuck = Stuck()

    async def requests(models: Models, settings: Settings) -> list[httpx.Response]:
        app = create_app(models, settings)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            first = asyncio.create_task(client.post("/v1/segment", content=as_png(picture)))
            await asyncio.to_thread(stuck.entered.wait, 10)
            late = asyncio.create_task(client.post("/v1/segment?timeout=0.05", content=as_png(picture)))
            await asyncio.sleep(0.2)
            app.state.context.draining = True
            states = [await client.get(path) for path in ("/v2/health/ready", "/v2/health/live", "/v2/models/small/ready")]
            stuck.go.set()
            return [*states, await first, await late]

    with stuck_models(bundle, stuck) as (models, settings):
        ready, live, model, first, late = asyncio.run(requests(models, settings))
    assert [response.status_code for response in (ready, live, model, first, late)] == [503, 200, 503, 200, 504]
    assert (ready.json(), live.json(), model.json()["ready"]) == ({"ready": False}, {"live": True}, False)
    assert "its time was over" in late.json()["error"]


def test_who_goes_leaves_the_queue(bundle: Bundle, picture: np.ndarray) -> None:
    stuck = Stuck()

    async def requests(models: Models, settings: Settings) -> int:
        transport = httpx.ASGITransport(create_app(models, settings))
        worker = models["small"]["1"].worker
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            first = asyncio.create_task(client.post("/v1/segment", content=as_png(picture)))
            await asyncio.to_thread(stuck.entered.wait, 10)
            goes = asyncio.create_task(client.post("/v1/segment", content=as_png(picture)))
            while not worker.waiting_pixels:
                await asyncio.sleep(0.01)
            goes.cancel()
            while worker.waiting_pixels:
                await asyncio.sleep(0.01)
            stuck.go.set()
            return (await first).status_code

    with stuck_models(bundle, stuck) as (models, settings):
        assert asyncio.run(asyncio.wait_for(requests(models, settings), 10)) == 200


def test_an_engine_that_hangs_is_a_503_and_then_answers_again(bundle: Bundle, client_of: Callable, picture: np.ndarray) -> None:
    stuck = Stuck()
    with stuck_models(bundle, stuck, hangs_after=0.2) as (models, settings):
        client = client_of(create_app(models, settings))
        response = client.post("/v1/segment", content=as_png(picture))
        assert refused(response)[0] == 503
        assert response.headers["retry-after"] == "1"
        stuck.go.set()
        while not models["small"]["1"].ready:
            time.sleep(0.01)
        assert client.post("/v1/segment", content=as_png(picture)).status_code == 200


def test_settings_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DDCAT_SERVE_MAX_BYTES", "123")
    assert read_settings().max_bytes == 123
    monkeypatch.setenv("DDCAT_SERVE_MAX_PIXELS", "many")
    with pytest.raises(ServeError, match="DDCAT_SERVE_MAX_PIXELS"):
        read_settings()
    monkeypatch.delenv("DDCAT_SERVE_MAX_PIXELS")
    monkeypatch.setenv("DDCAT_SERVE_MAX_PIXEL", "5")
    with pytest.raises(ServeError, match="DDCAT_SERVE_MAX_PIXEL is no setting"):
        read_settings()


def test_flags_come_before_the_environment_and_that_before_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "server.yaml"
    file.write_text("timeout: 1\ndrain: 2\ngrace: 3\ncors_origins: [https://a.example]")
    monkeypatch.setenv("DDCAT_SERVE_DRAIN", "20")
    monkeypatch.setenv("DDCAT_SERVE_GRACE", "30")
    found = read_settings(file, grace="300", max_bytes=None)
    assert (found.timeout, found.drain, found.grace) == (1, 20, 300)
    assert found.cors_origins == ("https://a.example",)
    assert read_settings(cors_origins="https://a.example, https://b.example").cors_origins == (
        "https://a.example", "https://b.example",
    )  # fmt: skip
    for text, message in (
        ("timeouts: 3", "timeouts is no setting"), ("- 3", "holds no settings"), ("timeout: soon", "timeout: Input should be"),
        ("a: [", "cannot be read"),
    ):  # fmt: skip
        file.write_text(text)
        with pytest.raises(ServeError, match=message):
            read_settings(file)
    with pytest.raises(ServeError, match="--max-bytes: Input should be a valid integer"):
        read_settings(max_bytes="many")
    secret = read_settings(api_key="very secret")
    assert secret.shown()["api_key"] is True
    assert "very secret" not in repr(secret)
