"""Fixtures: an application that keeps jobs, its runner and its store."""

from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from ddcat_serve.http.app import create_app
from ddcat_serve.http.job_runner import JobRunner
from ddcat_serve.http.job_store import JobStore, open_store
from ddcat_serve.inference.model_registry import Models
from ddcat_serve.settings import Settings

SETTINGS = Settings(body_timeout=1.0)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[JobStore]:
    with open_store(tmp_path / "jobs", most=9, expiry=60.0) as store:
        yield store


@pytest.fixture
def runner(store: JobStore, tiled_models: Models) -> Iterator[JobRunner]:
    runner = JobRunner(store, tiled_models, SETTINGS)
    yield runner
    runner.stop()


@pytest.fixture
def client(runner: JobRunner, tiled_models: Models, client_of: Callable) -> httpx.Client:
    client: httpx.Client = client_of(create_app(tiled_models, SETTINGS, jobs=runner))
    return client
