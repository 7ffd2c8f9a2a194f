"""Ray Serve, really running here: the same masks from two replicas, one of which is killed under load."""

import io
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import httpx
import numpy as np
import pytest
from PIL import Image

from ddcat.bundle import NO_TRUST_POLICY, Bundle
from ddcat.errors import BundleError
from ddcat_serve.errors import ServeError
from tests.bundles import small_bundle
from tests.commands import refusal
from tests.serve.payloads import as_png
from tests.serve.processes import free_port, wait_for

ray = pytest.importorskip("ray")
serve = pytest.importorskip("ray.serve")

from ddcat_serve.deploy.ray_app import Arguments, _Replica, application, run  # noqa: E402

CLIENTS = 4


class Answer(NamedTuple):
    began: float  # seconds
    ended: float
    status: int


@pytest.fixture
def address(bundle: Bundle) -> Iterator[str]:
    port = free_port()
    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=100 * 2**20, log_to_driver=False)
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        serve.run(application(Arguments(bundles=str(bundle.path), replicas=2, ongoing=CLIENTS, expect_digest=bundle.digest)))
        yield f"http://127.0.0.1:{port}"
    finally:
        serve.shutdown()
        ray.shutdown()


def replicas() -> list[str]:
    return [actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True) if "SERVE_REPLICA" in actor["name"]]


def test_wrong_numbers_are_refused_before_anything_starts() -> None:
    with pytest.raises(ServeError, match="--max-replicas 2 is less than --replicas 3"):
        run(Arguments(bundles="none", replicas=3, max_replicas=2), host="127.0.0.1", port=8000)
    assert not ray.is_initialized()


@pytest.mark.slow
def test_a_killed_replica_loses_nothing_but_what_was_in_it(
    address: str, bundle: Bundle, oracle: Callable, picture: np.ndarray
) -> None:
    expected = oracle(picture[None])[0][0]
    body, ended, answers = as_png(picture), threading.Event(), list[Answer]()
    assert httpx.get(f"{address}/v2/health/ready").json() == {"ready": True}
    about = httpx.get(f"{address}/v2/models/small").json()["parameters"]
    assert (about["bundle"], about["trust"]) == (bundle.digest, "the digest is the expected one")
    assert httpx.post(f"{address}/v1/segment", content=b"rubbish").status_code == 415

    def ask() -> None:
        with httpx.Client(timeout=30) as client:
            while not ended.is_set():
                began = time.monotonic()
                try:
                    response = client.post(f"{address}/v1/segment", content=body)
                except httpx.TransportError:  # Ray may leave a request of a killed replica without any answer
                    answers.append(Answer(began, time.monotonic(), 0))
                    continue
                answers.append(Answer(began, time.monotonic(), response.status_code))
                if response.status_code == 200:
                    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(response.content))), expected)

    with ThreadPoolExecutor(CLIENTS) as pool:
        tasks = [pool.submit(ask) for _ in range(CLIENTS)]
        wait_for(lambda: len(answers) > 100)
        before = replicas()
        assert len(before) == 2
        killed = time.monotonic()
        ray.kill(ray.get_actor(before[0], namespace="serve"))
        at = len(answers)
        wait_for(lambda: len(answers) > at + 100)
        wait_for(lambda: len(set(replicas()) - set(before)) == 1)  # Ray has started another one
        after, replaced = len(answers), time.monotonic()
        wait_for(lambda: len(answers) > after + 100)
        ended.set()
        for task in tasks:
            task.result(60)
    lost = [answer for answer in answers if answer.status != 200]
    assert len(lost) <= CLIENTS  # what the killed one had
    assert all(answer.ended > killed for answer in lost)
    assert all(answer.began < killed + 1 for answer in lost)  # within which Ray notices, and sends nothing there any more
    assert all(answer.status == 200 for answer in answers if answer.began > replaced)


@pytest.mark.parametrize(
    ("options", "said"),
    [(["--expect-digest", "0" * 64], f"expected {'0' * 64}"), (["--require-signature", "our.pub"], "is not signed")],
)
def test_a_bundle_of_somebody_else_is_refused_in_one_line(bundle: Bundle, options: list[str], said: str) -> None:
    told = refusal("ddcat", "ray", bundle.path, *options)
    assert told.startswith(f"{bundle.path} ")
    assert said in told


def test_each_replica_looks_for_itself_whom_a_bundle_is_from(bundle: Bundle) -> None:
    arguments = Arguments(bundles=str(bundle.path), expect_digest="0" * 64)
    with pytest.raises(BundleError, match=f"expected {'0' * 64}"):
        _Replica([str(bundle.path)], 1, arguments.trust)


def test_a_replica_follows_a_repository_and_loads_nothing_by_requests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, client_of: Callable, picture: np.ndarray
) -> None:
    small_bundle(tmp_path / "models" / "seg" / "1")
    monkeypatch.setenv("DDCAT_SERVE_REPOSITORY", str(tmp_path / "models"))
    monkeypatch.setenv("DDCAT_SERVE_WATCH", "true")
    monkeypatch.setenv("DDCAT_SERVE_API_KEY", "a long secret")
    client = client_of(_Replica([], 1, NO_TRUST_POLICY)._app)
    client.headers["Authorization"] = "Bearer a long secret"
    assert client.post("/v1/segment", content=as_png(picture)).headers["x-ddcat-version"] == "1"
    refused = client.post("/v2/repository/models/seg/load")
    assert (refused.status_code, "one replica of many" in refused.json()["error"]) == (403, True)
    with pytest.raises(ServeError, match="expected either bundles or DDCAT_SERVE_REPOSITORY"):
        application(Arguments(bundles="bundle"))
    monkeypatch.setenv("DDCAT_SERVE_SHADOW", "0.1")
    with pytest.raises(ServeError, match="DDCAT_SERVE_SHADOW is set, but Ray"):
        application(Arguments())


def test_jobs_and_a_port_for_grpc_are_refused_and_not_ignored(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DDCAT_SERVE_JOBS", "jobs")
    with pytest.raises(ServeError, match="DDCAT_SERVE_JOBS is set, but Ray"):
        application(Arguments(bundles=str(bundle.path)))
    monkeypatch.delenv("DDCAT_SERVE_JOBS")
    monkeypatch.setenv("DDCAT_SERVE_GRPC_PORT", "9000")
    with pytest.raises(ServeError, match="Ray serves HTTP only"):
        application(Arguments(bundles=str(bundle.path)))
    with pytest.raises(ServeError, match="Ray serves HTTP only"):
        _Replica([str(bundle.path)], 1, NO_TRUST_POLICY)
