"""What a client is told where there is no route, and where the engine fails, is busy, late, or hangs."""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import httpx
import numpy as np
import pytest

from ddcat.bundle import Bundle
from ddcat.engines import Outputs
from ddcat.engines.errors import EngineError
from ddcat.passport import PassportStatus
from ddcat_serve.http.app import create_app
from ddcat_serve.inference.admission_queue import AdmissionQueue
from ddcat_serve.inference.engine_worker import EngineWorker
from ddcat_serve.inference.model_registry import Models
from ddcat_serve.inference.served_model import ServedModel
from ddcat_serve.settings import Settings
from tests.serve.payloads import as_labels, as_png, asking, refused
from tests.serve.processes import wait_for

INFER = {"inputs": [{"name": "image", "shape": [1, 16, 32, 3], "datatype": "UINT8", "data": [7] * (16 * 32 * 3)}]}


def test_unknown_routes_models_and_versions_are_refused(client: httpx.Client, picture: np.ndarray) -> None:
    assert refused(client.get("/nowhere")) == (404, "GET /nowhere: Not Found; see openapi.json for the routes")
    assert refused(client.get("/metrics/"))[0] == 404  # a proxy may hide /metrics alone
    status, message = refused(client.get("/" + "x" * 20_000))
    assert (status, len(message) < 200) == (404, True)
    response = client.get("/v1/segment")
    assert refused(response)[0] == 405
    assert response.headers["allow"] == "POST"
    assert client.head("/v1/segment").status_code == 405
    assert refused(client.get("/v2/models/other")) == (404, "no model is named 'other'; there is small")
    assert refused(client.get("/v2/models/other/ready"))[0] == 404
    assert refused(client.post("/v2/models/other/infer", content=b"{}"))[0] == 404
    assert refused(client.get("/v2/models/small/versions/2"))[0] == 404
    assert refused(client.post("/v1/segment?model=other", content=as_png(picture)))[0] == 404


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
    worker = EngineWorker(
        "small",
        engine,  # type: ignore[arg-type]
        reopen=lambda: engine,  # type: ignore[arg-type,return-value]
        queue=AdmissionQueue(max_pixels=chosen.queue_pixels, batch_pixels=chosen.batch_pixels),
        engine_timeout=chosen.engine_timeout,
    )
    model = ServedModel(bundle, name="small", version="1", passport=PassportStatus(None, "none"), worker=worker)
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
        async with asking(create_app(models, settings)) as client:
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
        async with asking(create_app(models, settings)) as client:
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
        assert "too many pixels are waiting already; try again in 1 s" in message
        assert response.headers["retry-after"] == "1"


def test_a_server_that_drains_is_not_ready_but_answers_and_what_is_late_is_a_504(bundle: Bundle, picture: np.ndarray) -> None:
    stuck = Stuck()

    async def requests(models: Models, settings: Settings) -> list[httpx.Response]:
        app = create_app(models, settings)
        async with asking(app) as client:
            first = asyncio.create_task(client.post("/v1/segment", content=as_png(picture)))
            await asyncio.to_thread(stuck.entered.wait, 10)
            late = asyncio.create_task(client.post("/v1/segment?timeout=1", content=as_png(picture)))
            await asyncio.wait([late])
            app.state.server_state.draining = True
            states = [await client.get(path) for path in ("/v2/health/ready", "/v2/health/live", "/v2/models/small/ready")]
            stuck.go.set()
            return [*states, await first, await late]

    with stuck_models(bundle, stuck) as (models, settings):
        ready, live, model, first, late = asyncio.run(requests(models, settings))
    assert [response.status_code for response in (ready, live, model, first, late)] == [503, 200, 503, 200, 504]
    assert (ready.json(), live.json(), model.json()["ready"]) == ({"ready": False}, {"live": True}, False)
    assert "its timeout passed" in late.json()["error"]


def test_a_client_that_disconnects_leaves_the_queue(bundle: Bundle, picture: np.ndarray) -> None:
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
    with stuck_models(bundle, stuck, engine_timeout=0.2) as (models, settings):
        client = client_of(create_app(models, settings))
        response = client.post("/v1/segment", content=as_png(picture))
        assert refused(response)[0] == 503
        assert response.headers["retry-after"] == "1"
        stuck.go.set()
        wait_for(lambda: models["small"]["1"].ready)
        assert client.post("/v1/segment", content=as_png(picture)).status_code == 200
