import asyncio
import io
import threading
from collections.abc import AsyncIterator, Callable

import httpx
import numpy as np
import pytest
import simplejpeg
from fastapi import FastAPI
from PIL import Image

from ddcat.bundle import Bundle
from ddcat_serve.app import create_app
from ddcat_serve.engines import Outputs
from ddcat_serve.errors import EngineError, ServeError
from ddcat_serve.images import decode
from ddcat_serve.models import ServedModel, load_models
from ddcat_serve.settings import Settings, read_settings


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


def test_forms_that_are_not_one_file(client: httpx.Client, picture: np.ndarray) -> None:
    file = ("x.png", as_png(picture), "image/png")
    assert refused(client.post("/v1/segment", files=[("a", file), ("b", file)]))[0] == 400
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
        assert (status, message[:30]) == (400, "the multipart body is not one ")


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


def test_a_body_of_no_declared_length_is_read_no_further_than_the_limit(models: dict[str, ServedModel]) -> None:
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
    assert refused(client.get("/nowhere")) == (404, "GET /nowhere: Not Found")
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
    with load_models([bundle.path for bundle in bundles], threads=1) as models:
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


def test_two_bundles_of_one_name(bundle: Bundle) -> None:
    with pytest.raises(ServeError, match="both named 'small'"), load_models([bundle.path, bundle.path], threads=1):
        pass


class Stuck:
    """An engine that answers when it is let go, or fails."""

    def __init__(self, models: dict[str, ServedModel], error: Exception | None = None) -> None:
        self._engine = models["small"].engine
        self._error = error
        self.go = threading.Event()

    def infer(self, images: np.ndarray) -> Outputs:
        assert self.go.wait(10)
        if self._error is not None:
            raise self._error
        return self._engine.infer(images)


@pytest.mark.parametrize("error", [EngineError("the runtime broke"), MemoryError("out")])
def test_a_failing_engine_is_a_500_that_says_no_more_than_it_should(
    models: dict[str, ServedModel],
    client: httpx.Client,
    monkeypatch: pytest.MonkeyPatch,
    picture: np.ndarray,
    error: Exception,
) -> None:
    stuck = Stuck(models, error)
    stuck.go.set()
    monkeypatch.setattr(models["small"], "engine", stuck)
    status, message = refused(client.post("/v1/segment", content=as_png(picture)))
    assert status == 500
    assert message == ("the runtime broke" if isinstance(error, EngineError) else "the server failed; its log says why")


def test_health_answers_while_the_engine_is_busy(
    models: dict[str, ServedModel], monkeypatch: pytest.MonkeyPatch, picture: np.ndarray, oracle: Callable
) -> None:
    stuck = Stuck(models)
    monkeypatch.setattr(models["small"], "engine", stuck)

    async def requests() -> list[bytes]:
        transport = httpx.ASGITransport(create_app(models, Settings()))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            masks = [asyncio.create_task(client.post("/v1/segment", content=as_png(picture[: 20 + n]))) for n in range(10)]
            for _ in range(20):
                assert (await client.get("/v2/health/live")).status_code == 200
            assert not any(mask.done() for mask in masks)
            stuck.go.set()
            return [(await mask).content for mask in masks]

    for number, mask in enumerate(asyncio.run(requests())):
        np.testing.assert_array_equal(as_labels(mask), oracle(picture[None, : 20 + number])[0][0])


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
