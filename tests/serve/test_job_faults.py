"""Faults around `/v1/jobs`: odd headers, a slow or full disk, files that vanish."""

import asyncio
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from ddcat.preprocess import Resize
from ddcat_serve.errors import ServeError
from ddcat_serve.http import job_routes
from ddcat_serve.http.app import create_app
from ddcat_serve.http.job_runner import JobRunner
from ddcat_serve.http.job_store import JobRecord, JobStore
from ddcat_serve.inference.model_registry import Models, load_models
from tests.serve.job_server import SETTINGS, client, runner, store
from tests.serve.payloads import as_png, asking, refused
from tests.serve.processes import wait_for
from tests.serve.tiled import noise, tiled_bundle

__all__ = ["client", "runner", "store"]  # fixtures


def done(client: httpx.Client) -> str:
    job = client.post("/v1/jobs", content=as_png(noise(20, 30))).headers["location"]
    wait_for(lambda: client.get(job).json()["state"] == "done")
    return str(job)


def test_a_faulty_range_is_ignored_and_one_beyond_the_end_is_refused_as_json(client: httpx.Client) -> None:
    result = f"{done(client)}/result"
    whole = client.get(result).content
    for text in ("bytes=a-b", "bytes=9-5", "bytes=", "bytes", "lines=0-5", "bytes=0-4;x", ""):
        answer = client.get(result, headers={"Range": text})
        assert (answer.status_code, answer.content) == (200, whole), text
    part = client.get(result, headers={"Range": "bytes=2-5"})
    assert (part.status_code, part.content) == (206, whole[2:6])
    answer = client.get(result, headers={"Range": "bytes=999999-"})
    assert refused(answer) == (416, f"the file has {len(whole)} bytes, and the Range is not within them")
    assert answer.headers["content-range"] == f"bytes */{len(whole)}"


def test_a_result_that_the_client_has_is_not_sent_again(client: httpx.Client) -> None:
    result = f"{done(client)}/result"
    tag = client.get(result).headers["etag"]
    for text, status in ((tag, 304), (f'"other", W/{tag}', 304), ("*", 304), ('"other"', 200)):
        answer = client.get(result, headers={"If-None-Match": text})
        assert (answer.status_code, answer.headers["etag"], bool(answer.content)) == (status, tag, status == 200)
    assert client.get(result, headers={"If-None-Match": tag, "Range": "bytes=2-5"}).status_code == 304


def test_jobs_of_an_engine_that_does_not_work_wait_and_others_go_on(store: JobStore, tiled_models: Models) -> None:
    digest = tiled_models["tiled"]["1"].bundle.digest
    for name, model in (("a", "broken"), ("b", "tiled")):
        store.image(name * 32).write_bytes(as_png(noise(8, 8)))
        store.add(JobRecord(name * 32, "queued", model, "1", digest, "none", "png", 8, 8, 0.0))
    broken: Any = SimpleNamespace(name="broken", version="1", ready=False)
    runner = JobRunner(store, {"broken": {"1": broken}, **tiled_models}, SETTINGS)
    wait_for(lambda: store.get("b" * 32).state == "done")  # type: ignore[union-attr]
    assert store.get("a" * 32).state == "queued"  # type: ignore[union-attr]
    runner.stop()


def test_a_wrong_method_is_told_all_that_the_path_takes(client: httpx.Client) -> None:
    for path, methods in (("/v1/jobs", "POST"), (f"/v1/jobs/{'0' * 32}", "DELETE, GET, HEAD"), ("/v1/models", "GET, HEAD")):
        answer = client.put(path)
        assert (refused(answer)[0], answer.headers["allow"]) == (405, methods)


def test_the_server_answers_while_the_table_is_locked(runner: JobRunner, store: JobStore, tiled_models: Models) -> None:
    waiting, answered = threading.Event(), threading.Event()
    in_time = list[bool]()
    app = create_app(tiled_models, SETTINGS, jobs=runner)

    def expire() -> None:
        waiting.set()
        in_time.append(answered.wait(5))

    async def both() -> int:
        async with asking(app) as client:
            posting = asyncio.ensure_future(client.post("/v1/jobs", content=as_png(noise(20, 30))))
            await asyncio.to_thread(waiting.wait, 10)
            assert (await client.get("/v2/health/live")).status_code == 200
            answered.set()
            return (await posting).status_code

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "expire", expire)
        assert asyncio.run(both()) == 202
    assert all(in_time)


def test_the_time_of_a_slow_disk_is_not_the_clients(client: httpx.Client) -> None:
    usual = Path.open

    def slow(path: Path, *about: Any, **more: Any) -> Any:
        file = usual(path, *about, **more)
        return Slow(file) if about[:1] == ("wb",) else file

    class Slow:
        def __init__(self, file: Any) -> None:
            self.file = file

        def __enter__(self) -> "Slow":
            return self

        def __exit__(self, *about: object) -> None:
            self.file.close()

        def fileno(self) -> int:
            return int(self.file.fileno())

        def write(self, piece: bytes) -> None:
            time.sleep(2 * SETTINGS.body_timeout)
            self.file.write(piece)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job_routes, "_PIECE", 1000)
        patch.setattr(Path, "open", slow)
        answer = client.post("/v1/jobs", content=as_png(noise(20, 30)))
    assert answer.status_code == 202, answer.text


def test_a_job_whose_file_vanished_fails_without_a_name_of_the_servers_files(
    store: JobStore, runner: JobRunner, tiled_models: Models
) -> None:
    digest = tiled_models["tiled"]["1"].bundle.digest
    job = JobRecord("a" * 32, "queued", "tiled", "1", digest, "none", "png", 8, 8, 0.0)
    store.add(job)
    runner.wake()
    wait_for(lambda: store.get(job.id).state == "failed")  # type: ignore[union-attr]
    found = store.get(job.id)
    assert found is not None
    assert found.error == "the server could not store or read the job, its log says why: send the image again"


def test_why_there_is_no_result(store: JobStore, client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    job = JobRecord("a" * 32, "queued", "tiled", "1", "digest", "none", "png", 8, 8, 0.0)
    monkeypatch.setattr(store, "start", lambda unready: None)
    store.add(job)
    status, message = refused(client.get(f"/v1/jobs/{job.id}/result"))
    assert (status, message) == (409, "the job is queued, 0% of it is done: try again later")
    store.end(job, "it is damaged")
    assert refused(client.get(f"/v1/jobs/{job.id}/result")) == (409, "the job failed: it is damaged")
    store.end(job)
    assert refused(client.get(f"/v1/jobs/{job.id}/result"))[0] == 404  # its file is gone
    monkeypatch.setattr(store, "remove", lambda name: False)
    assert refused(client.delete(f"/v1/jobs/{job.id}"))[0] == 404


def test_a_fault_of_ours_ends_the_job_and_not_the_thread(
    store: JobStore, runner: JobRunner, client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(runner, "_compute", lambda job, model: 1 / 0)
        job = client.post("/v1/jobs", content=as_png(noise(20, 30))).headers["location"]
        wait_for(lambda: client.get(job).json()["state"] == "failed")
    assert client.get(job).json()["error"] == "the server failed; its log says why"
    done(client)


def test_a_table_of_another_version_is_refused(store: JobStore, tmp_path: Path) -> None:
    store._database.execute("PRAGMA user_version = 7")
    with pytest.raises(ServeError, match="its jobs have version 7, expected 1: use another folder"):
        JobStore(tmp_path / "jobs", most=1, expiry=1.0)
    store._database.execute("PRAGMA user_version = 1")


def test_a_job_is_removed_where_the_disk_has_no_room_even_for_that(store: JobStore) -> None:
    job = JobRecord("a" * 32, "done", "m", "1", "digest", "none", "png", 8, 8, 0.0, 1, 1.0)
    store.add(job)
    store.result(job).write_bytes(b"mask")
    usual = store._one

    def full(query: str, *values: Any) -> Any:
        if query.startswith("DELETE") and store.result(job).exists():
            error = sqlite3.OperationalError("database or disk is full")
            error.sqlite_errorcode = sqlite3.SQLITE_FULL
            raise error
        return usual(query, *values)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "_one", full)
        assert store.remove(job.id)
    assert store.get(job.id) is None


@pytest.mark.parametrize("route", ["/v1/segment", "/v1/jobs"])
def test_what_is_too_narrow_is_named_by_its_own_size(route: str, client: httpx.Client) -> None:
    answer = client.post(route, content=as_png(noise(1, 300)))
    assert refused(answer) == (400, "Image is 300 x 1; this model needs at least 8 x 8 (width x height)")


@pytest.mark.parametrize("route", ["/v1/segment", "/v1/jobs"])
def test_what_is_too_narrow_once_it_is_resized_is_named_by_both(
    route: str, store: JobStore, client_of: Callable, tmp_path: Path
) -> None:
    bundle = tiled_bundle(tmp_path / "resizing", Resize(to=100, kernel="area"))
    with load_models([bundle.path], settings=SETTINGS, threads=1) as models:
        runner = JobRunner(store, models, SETTINGS)
        answer = client_of(create_app(models, SETTINGS, jobs=runner)).post(route, content=as_png(noise(1, 300)))
        runner.stop()
    status, message = refused(answer)
    assert status == 400
    assert message.startswith("Image is 100 x 1 once it is resized from 300 x 1; this model needs at least 8 x 8")
