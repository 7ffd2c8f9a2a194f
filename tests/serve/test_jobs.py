"""`/v1/jobs`: masks of images that take long, which survive the end of the server, and equal those of `ddcat predict`."""

import errno
import io
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from ddcat.errors import DdcatError
from ddcat.predict.run import predict
from ddcat.predict.sources import find_sources
from ddcat_serve.errors import RequestError, ServeError
from ddcat_serve.http import job_store
from ddcat_serve.http.app import create_app
from ddcat_serve.http.job_store import JobRecord, JobStore, open_store
from ddcat_serve.inference.model_registry import Models
from ddcat_serve.settings import Settings
from tests.serve.job_server import client, runner, store
from tests.serve.payloads import as_labels, as_png, refused
from tests.serve.processes import server, wait_for
from tests.serve.tiled import geotiff, noise

__all__ = ["client", "runner", "store"]  # fixtures


@pytest.fixture(scope="module")
def address(tiled_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server with a place for three jobs of up to 64 KiB and 100,000 pixels."""
    limits = ["--max-jobs", "3", "--job-bytes", "400000", "--job-pixels", "100000", "--max-pixels", "50000"]
    with server(tiled_path, "--jobs", tmp_path_factory.mktemp("jobs") / "new", *limits) as (_, where):
        yield where


def ended(job: str, timeout: float = 60) -> dict[str, Any]:
    until = time.monotonic() + timeout
    while (status := httpx.get(job).json())["state"] in ("queued", "running"):
        assert time.monotonic() < until, status
        time.sleep(0.02)
    found: dict[str, Any] = status
    return found


def submitted(address: str, content: bytes) -> str:
    response = httpx.post(f"{address}/v1/jobs", content=content)
    assert response.status_code == 202, response.text
    return f"{address}{response.headers['location']}"


def predicted(bundle: Path, name: str, content: bytes, folder: Path) -> bytes:
    (folder / name).write_bytes(content)
    predict(bundle, find_sources([str(folder / name)]), folder / "out", formats=["png"])
    [mask] = (folder / "out/masks").iterdir()
    return mask.read_bytes()


def test_a_job_gives_the_file_of_predict_until_it_is_deleted(address: str, tiled_path: Path, tmp_path: Path) -> None:
    content = as_png(noise(150, 211))
    response = httpx.post(f"{address}/v1/jobs?model=tiled", content=content)
    assert response.status_code == 202, response.text
    job = f"{address}{response.headers['location']}"
    assert response.json()["id"] == job.rsplit("/", 1)[1]
    status = ended(job)
    assert (status["state"], status["progress"], status["size"], status["error"]) == ("done", 1, [150, 211], None)
    assert status["expires"] > status["ended"]
    result = httpx.get(f"{job}/result")
    assert (result.headers["content-type"], result.headers["x-ddcat-model"]) == ("image/png", "tiled")
    assert result.content == predicted(tiled_path, "a.png", content, tmp_path)
    assert httpx.delete(job).status_code == 204
    assert [refused(ask(f"{job}{end}"))[0] for ask in (httpx.get, httpx.delete) for end in ("",)] == [404, 404]
    assert refused(httpx.get(f"{job}/result"))[0] == 404


def test_a_geotiff_keeps_its_place(address: str, tiled_path: Path, tmp_path: Path) -> None:
    rasterio = pytest.importorskip("rasterio", reason="rasterio is not installed")
    content = geotiff(noise(200, 310), tiled=True, blockxsize=64, blockysize=64)
    job = submitted(address, content)
    assert ended(job)["state"] == "done"
    result = httpx.get(f"{job}/result")
    assert result.headers["content-type"] == "image/tiff"
    assert result.content == predicted(tiled_path, "a.tif", content, tmp_path)
    with rasterio.MemoryFile(result.content).open() as mask:
        assert (mask.crs.to_epsg(), mask.transform.c) == (32633, 500_000)
    httpx.delete(job)


def test_what_is_too_much_or_no_image_is_refused_and_leaves_no_job(address: str) -> None:
    def answer(content: bytes, **headers: str) -> tuple[int, str]:
        return refused(httpx.post(f"{address}/v1/jobs", content=content, headers=headers))

    assert answer(b"text")[0] == 415
    assert answer(as_png(noise(20, 20))[:30])[0] == 400
    status, message = answer(as_png(np.zeros((300, 200, 3), np.uint8)))
    assert (status, "expected at most 50000" in message) == (413, True)
    assert answer(bytes(400_001)) == (413, "the body is longer than 400000 bytes")
    assert answer(b"x", **{"Content-Type": "multipart/form-data; boundary=x"})[0] == 415
    status, message = answer(as_png(noise(4, 200)))  # the engine takes 8 pixels and more
    assert (status, "height" in message) == (400, True)
    assert refused(httpx.post(f"{address}/v1/jobs?model=other", content=b"x"))[0] == 404
    jobs = [submitted(address, as_png(noise(20, 20))) for _ in range(3)]
    status, message = answer(as_png(noise(20, 20)))
    assert (status, "keeps 3 jobs already: delete one" in message) == (429, True)
    for job in jobs:
        ended(job)
        assert httpx.delete(job).status_code == 204
    for job in ("x", "0" * 32):
        assert refused(httpx.get(f"{address}/v1/jobs/{job}"))[0] == 404


def test_large_geotiffs_are_taken_up_to_a_limit(address: str) -> None:
    flat = np.zeros((240, 400, 3), np.uint8)  # beyond --max-pixels
    job = submitted(address, geotiff(flat, compress="deflate"))
    assert ended(job)["state"] == "done"
    httpx.delete(job)
    refusal = httpx.post(f"{address}/v1/jobs", content=geotiff(np.zeros((400, 400, 3), np.uint8), compress="deflate"))
    assert refused(refusal) == (413, "the image is 400 x 400 pixels; expected at most 100000 pixels in a job")


def slowed(seconds: float) -> str:
    """Python that makes each call of an engine take so long, once it has been warmed up."""
    return (
        "import time, ddcat_serve.inference.jobs as jobs\n"
        "usual = jobs.infer_batch\n"
        f"jobs.infer_batch = lambda *about: (time.sleep({seconds}), usual(*about))[1]\n"
        "import ddcat_serve.inference.engine_worker as worker\n"
        "worker.infer_batch = jobs.infer_batch"
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["png", "tif"])
def test_a_job_survives_the_death_of_its_server(kind: str, tiled_path: Path, tmp_path: Path) -> None:
    image = noise(300, 300)
    content = as_png(image) if kind == "png" else geotiff(image)
    folder = tmp_path / "jobs"
    with server(tiled_path, "--jobs", folder, before=slowed(0.1)) as (process, address):
        job = submitted(address, content)
        name = job.rsplit("/", 1)[1]
        wait_for(lambda: httpx.get(job).json()["progress"] > 0.2)
        status, message = refused(httpx.get(f"{job}/result"))
        assert (status, "the job is running" in message) == (409, True)
        process.kill()
        process.wait()
    with server(tiled_path, "--jobs", folder) as (_, address):
        job = f"{address}/v1/jobs/{name}"
        assert ended(job)["state"] == "done"
        assert httpx.get(f"{job}/result").content == predicted(tiled_path, f"a.{kind}", content, tmp_path)
    assert sorted(file.name for file in folder.iterdir() if file.name[0] != ".") == sorted(
        ["jobs.sqlite", f"{name}-result.{kind}"]
    )


def test_requests_are_answered_and_the_job_is_cancelled_meanwhile(tiled_path: Path, tmp_path: Path, oracle: Callable) -> None:
    with server(tiled_path, "--jobs", tmp_path, "--api-key", "a long key", before=slowed(0.1)) as (process, address):
        headers = {"Authorization": "Bearer a long key"}
        assert refused(httpx.post(f"{address}/v1/jobs", content=as_png(noise(300, 300))))[0] == 401
        with httpx.Client(base_url=address, headers=headers) as client:
            job = client.post("/v1/jobs", content=as_png(noise(300, 300))).headers["location"]
            second = client.post("/v1/jobs", content=as_png(noise(20, 30))).headers["location"]
            wait_for(lambda: client.get(job).json()["state"] == "running")
            small = noise(30, 20)
            response = client.post("/v1/segment?timeout=5", content=as_png(small))
            np.testing.assert_array_equal(as_labels(response.content), oracle(small[None])[0][0])
            assert client.get(job).json()["state"] == "running"
            assert client.delete(job).status_code == 204
            wait_for(lambda: client.get(second).json()["state"] == "done")
            assert Image.open(io.BytesIO(client.get(f"{second}/result").content)).size == (30, 20)
            again = client.post("/v1/jobs", content=as_png(noise(300, 300))).headers["location"].rsplit("/", 1)[1]
            wait_for(lambda: client.get(f"/v1/jobs/{again}").json()["state"] == "running")
        process.terminate()
        assert process.wait(30) == 0
    with open_store(tmp_path, most=3, expiry=60.0) as store:
        record = store.get(again)
        assert record is not None
        assert (record.state, record.starts) == ("queued", 0)


def test_without_a_folder_a_line_says_what_to_set(tiled_path: Path, client_of: Callable) -> None:
    client = client_of(create_app({}, Settings()))
    for response in (client.post("/v1/jobs", content=b"x"), client.get("/v1/jobs/x"), client.get("/v1/jobs/x/result")):
        assert refused(response) == (404, "this server accepts no jobs: start it with --jobs FOLDER (DDCAT_SERVE_JOBS)")


def record(name: str, submitted: float = 0.0, **changes: Any) -> JobRecord:
    return JobRecord(name * 32, "queued", "m", "1", "digest", "none", "png", 8, 8, submitted)._replace(**changes)


def test_a_job_that_cannot_be_done_fails_in_a_line_and_the_next_one_is_done(
    store: JobStore, tiled_models: Models, request: pytest.FixtureRequest
) -> None:
    content = as_png(noise(70, 80))
    about = {"model": "tiled", "bundle": tiled_models["tiled"]["1"].bundle.digest, "height": 70, "width": 80}
    jobs = {
        "a": record("a", 1.0, **about, starts=3),
        "b": record("b", 2.0, **(about | {"bundle": "of another"})),
        "c": record("c", 3.0, **(about | {"model": "gone"})),
        "d": record("d", 4.0, **about),
        "e": record("e", 5.0, **about),
    }
    for name, job in jobs.items():
        store.image(job.id).write_bytes(content[:500] if name == "d" else content)
        store.add(job)
    request.getfixturevalue("runner")
    wait_for(lambda: store.get("e" * 32).state == "done")  # type: ignore[union-attr]
    errors = [store.get(name * 32).error for name in jobs]  # type: ignore[union-attr]
    assert errors[:2] == [
        "the server ended 3 times while it computed this job",
        "the bundle of tiled, version 1, has changed: send the image again",
    ]  # fmt: skip
    assert "no model is named 'gone'" in str(errors[2])
    assert "damaged" in str(errors[3]) or "cut off" in str(errors[3])
    assert errors[4] is None


def test_an_image_that_arrives_too_slowly_is_refused(tiled_path: Path, tmp_path: Path) -> None:
    def trickle() -> Iterator[bytes]:
        while True:
            yield b"x" * 100
            time.sleep(0.2)

    with server(tiled_path, "--jobs", tmp_path, "--body-timeout", "0.5") as (_, address):
        status, message = refused(httpx.post(f"{address}/v1/jobs", content=trickle()))
        assert (status, "expected 65536 bytes in 0.5 s" in message) == (408, True)
    assert [file.name for file in tmp_path.glob("[!.]*")] == ["jobs.sqlite"]


def test_a_full_disk_is_said_and_leaves_nothing(client: httpx.Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    status, message = refused(client.post("/v1/jobs", content=as_png(noise(20, 30))))
    assert (status, "cannot store or read jobs now" in message) == (507, True)
    assert [file.name for file in (tmp_path / "jobs").glob("[!.]*")] == ["jobs.sqlite"]


def test_the_store_keeps_order_and_forgets_in_time(tmp_path: Path) -> None:
    now = [100.0]
    store = JobStore(tmp_path, most=3, expiry=10.0, clock=lambda: now[0])
    for name, at in (("b", 2.0), ("a", 1.0), ("c", 3.0)):
        store.add(record(name, at))
        store.image(name * 32).write_bytes(b"image")
    with pytest.raises(RequestError, match="keeps 3 jobs already"), store.upload():
        pass
    first = store.start()
    assert first is not None
    assert (first.id[0], first.state, first.starts) == ("a", "running", 1)
    store.put_back(first.id)
    again = store.start()
    assert again == first
    store.result(first).write_bytes(b"mask")
    store.end(first)
    failed = store.start()
    assert failed is not None
    store.end(failed, "it is damaged")
    assert [store.get(name * 32).state for name in "abc"] == ["done", "failed", "queued"]  # type: ignore[union-attr]
    now[0] += 11
    with store.upload() as name:  # two have expired
        store.image(name).write_bytes(b"half")
        store.image("f" * 32).write_bytes(b"of a server that was killed")
    assert [store.get(name * 32) for name in "ab"] == [None, None]
    running = store.start()
    assert running is not None
    store.close()
    (tmp_path / f".{'c' * 32}-result.png.01234567").write_bytes(b"half")
    reopened = JobStore(tmp_path, most=3, expiry=10.0)
    assert reopened.get(running.id) == running._replace(state="queued")
    assert sorted(file.name for file in tmp_path.iterdir()) == [f"{'c' * 32}-image", "jobs.sqlite"]
    reopened.remove(running.id)
    reopened.end(running)  # which was cancelled
    assert [file.name for file in tmp_path.iterdir()] == ["jobs.sqlite"]
    reopened.close()


def test_one_server_has_the_folder_and_a_strange_table_is_refused(tmp_path: Path) -> None:
    taken = pytest.raises(DdcatError, match="another server keeps its jobs in")
    with open_store(tmp_path, most=1, expiry=1.0), taken, open_store(tmp_path, most=1, expiry=1.0):
        pass
    (tmp_path / "jobs.sqlite").write_bytes(b"text" * 1000)
    with pytest.raises(ServeError, match="cannot be read: file is not a database"), open_store(tmp_path, most=1, expiry=1.0):
        pass


def small_job(store: JobStore, models: Models) -> JobRecord:
    """Add a job of 8 x 8 pixels."""
    job = record("a", model="tiled", bundle=models["tiled"]["1"].bundle.digest)
    store.image(job.id).write_bytes(as_png(noise(8, 8)))
    store.add(job)
    return job


def test_a_job_that_arrives_while_the_thread_looks_is_not_left_to_wait(
    store: JobStore, tiled_models: Models, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    usual, made = store.start, threading.Event()

    def start(unready: object) -> JobRecord | None:
        found = usual()
        if found is None and made.wait(30) and store.get("a" * 32) is None:
            small_job(store, tiled_models)
            runner.wake()  # before the thread waits
        return found

    monkeypatch.setattr(store, "start", start)
    runner = request.getfixturevalue("runner")
    made.set()
    wait_for(lambda: (at := store.get("a" * 32)) is not None and at.state == "done")


def test_a_job_whose_end_could_not_be_written_is_begun_again(
    store: JobStore, tiled_models: Models, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    job = small_job(store, tiled_models)
    usual, failures = store.end, [sqlite3.OperationalError("database or disk is full")]

    def end(job: JobRecord, error: str | None = None) -> None:
        if failures:
            raise failures.pop()
        usual(job, error)

    monkeypatch.setattr(store, "end", end)
    runner = request.getfixturevalue("runner")
    wait_for(lambda: not failures)
    runner.wake()
    wait_for(lambda: store.get(job.id).state == "done")  # type: ignore[union-attr]


def test_a_table_that_was_half_made_is_made_again(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job_store, "_VERSION", "wrong wrong")
        with pytest.raises(ServeError, match="cannot be read"), open_store(tmp_path, most=1, expiry=1.0):
            pass
    with open_store(tmp_path, most=1, expiry=1.0) as store:
        assert store.start() is None


def test_a_table_that_is_damaged_meanwhile_is_said_in_a_line(client: httpx.Client, tmp_path: Path) -> None:
    job, folder = client.post("/v1/jobs", content=as_png(noise(20, 30))).headers["location"], tmp_path / "jobs"
    wait_for(lambda: client.get(job).json()["state"] == "done")
    files = len(list(folder.iterdir()))
    (folder / "jobs.sqlite").write_bytes(b"text" * 10000)
    answers = [client.get(job), client.delete(job), client.post("/v1/jobs", content=as_png(noise(20, 30)))]
    assert [refused(answer)[0] for answer in answers] == [507] * 3
    assert str(tmp_path) not in "".join(answer.text for answer in answers)
    assert len(list(folder.iterdir())) == files
