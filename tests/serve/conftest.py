import asyncio
import contextlib
import os
import subprocess
import venv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from ddcat_serve.http.app import create_app
from ddcat_serve.inference.model_registry import Models, load_models
from ddcat_serve.inference.sources import Source
from ddcat_serve.settings import Settings
from tests.bundles import build, bundle, cache, make_bundle, oracle, picture, small_bundle
from tests.serve.tiled import tiled_bundle

__all__ = ["build", "bundle", "cache", "make_bundle", "oracle", "picture"]  # fixtures


@pytest.fixture(autouse=True, scope="module")
def short_warm_up() -> Iterator[None]:
    """Models are loaded in these tests many times; what a warm-up measures matters to few of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ddcat_serve.inference.capacity._MAX_PIXELS", 2**12)
        patch.setattr("ddcat_serve.inference.warm_up._TIMING_SECONDS", 0.005)
        yield


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Models]:
    """The small bundle, loaded once for a file's tests."""
    path = small_bundle(tmp_path_factory.mktemp("models") / "small.bundle").path
    with load_models([path], settings=Settings(), threads=1) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def tiled_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small bundle with a rule for tiles."""
    return tiled_bundle(tmp_path_factory.mktemp("tiled") / "tiled.bundle").path


@pytest.fixture(scope="module")
def tiled_models(tiled_path: Path) -> Iterator[Models]:
    """That bundle, loaded once for a file's tests."""
    with load_models([tiled_path], settings=Settings(), threads=1) as loaded:
        yield loaded


class InProcess(httpx.BaseTransport):
    """Sends each request to an application in an event loop of its own."""

    def __init__(self, app: FastAPI) -> None:
        self._transport = httpx.ASGITransport(app, raise_app_exceptions=False)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        async def answer() -> httpx.Response:
            async with httpx.AsyncClient(transport=self._transport) as client:
                return await client.request(request.method, request.url, headers=request.headers, content=request.read())

        response = asyncio.run(answer())
        headers = {name: value for name, value in response.headers.items() if name != "content-encoding"}  # is decoded
        return httpx.Response(response.status_code, headers=headers, content=response.content)


@pytest.fixture(scope="session")
def client_of() -> Callable[[FastAPI], httpx.Client]:
    return lambda app: httpx.Client(transport=InProcess(app), base_url="http://test")


@pytest.fixture
def serving(client_of: Callable[[FastAPI], httpx.Client]) -> Iterator[Callable[..., httpx.Client]]:
    """Serves bundles, by their paths or sources, with some settings, until the test ends."""
    with contextlib.ExitStack() as stack:

        def serve(*sources: Path | Source, **settings: Any) -> httpx.Client:
            chosen = Settings(**settings)
            models = stack.enter_context(load_models(sources, settings=chosen, threads=1))
            return client_of(create_app(models, chosen))

        yield serve


@pytest.fixture(scope="module")
def client(models: Models, client_of: Callable[[FastAPI], httpx.Client]) -> httpx.Client:
    """The server with small limits: 64 KiB and 5000 pixels."""
    return client_of(create_app(models, Settings(max_bytes=65536, max_pixels=5000)))


@pytest.fixture(scope="session")
def kserve(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment with KServe's package; DDCAT_KSERVE_VENV names one that is ready."""
    folder = Path(os.environ.get("DDCAT_KSERVE_VENV") or tmp_path_factory.mktemp("kserve") / "venv")
    if not folder.exists():
        venv.create(folder, with_pip=True)
        line = [folder / "bin/pip", "install", "-q", "kserve==0.21.0"]
        done = subprocess.run(line, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"kserve cannot be installed here: {done.stderr.strip().splitlines()[-1]}")
    return folder.absolute() / "bin/python"
