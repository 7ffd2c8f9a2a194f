"""Swaps while requests are under way, of a folder that is watched, and of a server that ends."""

import asyncio
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from ddcat.bundle import TrustPolicy
from ddcat.engines.base import CheckedEngine, Outputs
from ddcat_serve.http.app import create_app
from ddcat_serve.inference import watching
from ddcat_serve.inference.model_registry import Drain
from ddcat_serve.inference.repository import open_repository
from ddcat_serve.observe.metrics import Metrics
from ddcat_serve.settings import Settings
from tests.bundles import small_bundle, with_golden
from tests.serve.payloads import as_labels, as_png
from tests.serve.processes import wait_for
from tests.serve.repository_server import KEY, answering, folder, start

__all__ = ["folder", "start"]  # fixtures


def test_accepted_requests_are_answered_by_the_old_engine_which_is_then_freed(
    start: Callable, folder: Path, picture: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = start()
    go, closed, infer, close = threading.Event(), list[object](), CheckedEngine.infer, CheckedEngine.close
    old = server.repository.models["seg"]["1"].engine

    def slow(engine: CheckedEngine, images: np.ndarray) -> Outputs:
        if engine is old:
            assert go.wait(60)
        return infer(engine, images)

    monkeypatch.setattr(CheckedEngine, "infer", slow)
    monkeypatch.setattr(CheckedEngine, "close", lambda engine: (closed.append(engine), close(engine))[1])
    answers: list[httpx.Response] = []
    asking = [threading.Thread(target=lambda: answers.append(server.segment(picture))) for _ in range(3)]
    for thread in asking:
        thread.start()
    wait_for(lambda: server.repository.models["seg"]["1"].worker.waiting_pixels >= 2 * picture[..., 0].size)
    small_bundle(folder / "seg" / "2")
    assert server.post("load").status_code == 200
    assert answering(server, picture)[0] == "2"  # while the old one still computes
    assert not closed
    go.set()
    for thread in asking:
        thread.join()
    assert [(answer.status_code, answer.headers["x-ddcat-version"]) for answer in answers] == [(200, "1")] * 3
    wait_for(lambda: old in closed)


def test_a_name_is_loaded_by_one_request_at_a_time(
    start: Callable, folder: Path, picture: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = start()
    small_bundle(folder / "seg" / "2")
    go, load = threading.Event(), server.repository._loader.load
    monkeypatch.setattr(server.repository._loader, "load", lambda *a, **k: (go.wait(20), load(*a, **k))[1])
    first: list[httpx.Response] = []
    loading = threading.Thread(target=lambda: first.append(server.post("load")))
    loading.start()
    wait_for(lambda: server.index()["2"][0] == "LOADING")
    for verb in ("load", "unload"):
        response = server.post(verb)
        assert (response.status_code, "another call" in response.json()["error"]) == (409, True)
    assert answering(server, picture)[0] == "1"
    go.set()
    loading.join()
    assert first[0].status_code == 200


def test_a_runtime_that_fails_is_a_refusal_of_one_line(
    start: Callable, folder: Path, picture: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = start()
    small_bundle(folder / "seg" / "2")

    def broken(*given: object, **named: object) -> None:
        raise RuntimeError("inside of the runtime\nat some address")

    monkeypatch.setattr("ddcat_serve.inference.model_registry.open_engine", broken)
    told = server.post("load")
    assert (told.status_code, told.json()["error"]) == (
        400, "load failed for model 'seg', version 2: its engine failed; the server's log says why",
    )  # fmt: skip
    assert answering(server, picture)[0] == "1"


def test_a_slow_request_gets_the_model_of_the_moment_when_it_has_arrived(
    start: Callable, folder: Path, picture: np.ndarray
) -> None:
    """Its body begins before the swap and ends after it; the old engine is closed meanwhile."""
    server = start()
    small_bundle(folder / "seg" / "2")
    body = as_png(picture)

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(server.app)

        async with httpx.AsyncClient(transport=transport, base_url="http://test", headers=KEY) as client:

            async def parts() -> Any:
                yield body[:100]
                loaded = await client.post("/v2/repository/models/seg/load")
                assert loaded.status_code == 200
                while any(thread.is_alive() for thread in server.repository._places["seg"].retiring):
                    await asyncio.sleep(0.01)
                yield body[100:]

            return await client.post("/v1/segment", content=parts())

    answer = asyncio.run(ask())
    assert (answer.status_code, answer.headers["x-ddcat-version"]) == (200, "2")


def test_a_swap_that_ends_after_the_server_closes_its_engine(
    folder: Path, monkeypatch: pytest.MonkeyPatch, client_of: Callable
) -> None:
    settings, opened = Settings(repository=folder, api_key="a long secret"), list[Any]()
    opening = open_repository(folder, settings=settings, threads=1, trust=TrustPolicy(), metrics=Metrics(), drain=Drain(5.0))
    with opening as repository:
        client = client_of(create_app(repository.models, settings, repository=repository))
        small_bundle(folder / "seg" / "2")
        go, load = threading.Event(), repository._loader.load

        def late(*given: Any, **named: Any) -> Any:
            opened.append(load(*given, **named))
            assert go.wait(20)
            return opened[0]

        monkeypatch.setattr(repository._loader, "load", late)
        answers: list[httpx.Response] = []
        post = lambda: answers.append(client.post("/v2/repository/models/seg/load", headers=KEY))  # noqa: E731
        loading = threading.Thread(target=post)
        loading.start()
        wait_for(lambda: bool(opened))
    go.set()
    loading.join()
    assert answers[0].status_code == 503
    assert opened[0].worker.state == "stopping"


def test_a_watched_folder_is_followed(
    folder: Path, start: Callable, picture: np.ndarray, oracle: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = start(api_key=None, watch=True)
    monkeypatch.setattr(watching, "_INTERVAL", 0.05)
    other = small_bundle(folder.parent / "other")

    async def follow() -> None:
        task = asyncio.ensure_future(watching.watch(server.repository))

        async def until(version: str | None, refused: int) -> None:
            async with asyncio.timeout(20):
                while True:
                    model = next(iter(server.repository.models["seg"]))
                    if (model, len(server.repository._places["seg"].refused)) == (version, refused):
                        return
                    await asyncio.sleep(0.02)

        with_golden(folder / "seg" / "2", oracle, picture)
        await until("2", 0)
        copied = folder / "seg" / "3"
        copied.mkdir()  # as `cp` does, in no good order and slowly
        (copied / "model.onnx").write_bytes(other.files["model.onnx"][:-1])
        await until("2", 1)  # a half is refused
        (copied / "model.onnx").write_bytes(other.files["model.onnx"])
        (copied / "manifest.json").write_bytes((other.path / "manifest.json").read_bytes())
        await until("3", 0)
        shutil.rmtree(copied)
        await until("2", 0)
        (folder / "seg").rename(folder / ".seg")
        await asyncio.sleep(0.3)
        await until("2", 0)  # nothing takes its place
        assert not task.done()
        task.cancel()

    asyncio.run(follow())
    np.testing.assert_array_equal(as_labels(server.segment(picture).content), oracle(picture[None])[0][0])
