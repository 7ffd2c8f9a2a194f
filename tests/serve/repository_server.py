"""An application over a repository of models, for the tests of loads, swaps and shadows."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI

from ddcat.bundle import TrustPolicy
from ddcat_serve.http.app import create_app
from ddcat_serve.inference.model_registry import Drain
from ddcat_serve.inference.repository import Repository, open_repository
from ddcat_serve.observe.metrics import Metrics
from ddcat_serve.settings import Settings
from tests.bundles import small_bundle
from tests.serve.payloads import as_png

__all__ = ["KEY", "Server", "answering", "folder", "start"]

KEY = {"Authorization": "Bearer a long secret"}


class Server:
    """An application over a repository, and requests to it."""

    def __init__(self, repository: Repository, app: FastAPI, client: httpx.Client) -> None:
        self.repository, self.app, self.client = repository, app, client
        client.headers.update(KEY)

    def post(self, verb: str, body: dict[str, Any] | None = None, name: str = "seg") -> httpx.Response:
        return self.client.post(f"/v2/repository/models/{name}/{verb}", json=body or {})

    def segment(self, picture: np.ndarray) -> httpx.Response:
        return self.client.post("/v1/segment", content=as_png(picture))

    def index(self) -> dict[str, tuple[str, str]]:
        """States and reasons of the versions of seg."""
        listed = self.client.post("/v2/repository/index").json()
        return {entry["version"]: (entry["state"], entry["reason"]) for entry in listed if entry["name"] == "seg"}

    def metric(self, line: str) -> float | None:
        found = [text for text in self.client.get("/metrics").text.splitlines() if text.startswith(f"{line} ")]
        return float(found[0].rpartition(" ")[2]) if found else None


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A repository with version 1 of seg, and an empty place for what is to come."""
    folder = tmp_path / "models"
    small_bundle(folder / "seg" / "1")
    (folder / "seg" / "not a version").mkdir()
    (folder / ".hidden" / "1").mkdir(parents=True)
    return folder


@pytest.fixture
def start(folder: Path, client_of: Callable[[FastAPI], httpx.Client]) -> Iterator[Callable[..., Server]]:
    with contextlib.ExitStack() as stack:

        def started(trust: TrustPolicy | None = None, **settings: Any) -> Server:
            given = Settings(repository=folder, **{"api_key": "a long secret"} | settings)
            metrics = Metrics()
            opening = open_repository(
                folder, settings=given, threads=1, trust=trust or TrustPolicy(), metrics=metrics, drain=Drain(5.0),
                refusal=given.load_refusal(),
            )  # fmt: skip
            repository = stack.enter_context(opening)
            app = create_app(repository.models, given, metrics, repository=repository)
            return Server(repository, app, client_of(app))

        yield started


def answering(server: Server, picture: np.ndarray) -> tuple[str, str]:
    """Version and digest of the bundle that answers."""
    response = server.segment(picture)
    assert response.status_code == 200
    return response.headers["x-ddcat-version"], response.headers["x-ddcat-bundle"]
