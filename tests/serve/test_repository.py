"""Swaps of models in a running application: what is verified answers at once, and nothing else ever does."""

import asyncio
import contextlib
import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
import pytest
from fastapi import FastAPI

from ddcat.bundle import Bundle, TrustPolicy, entries, write_bundle
from ddcat.engines.base import CheckedEngine, Outputs
from ddcat.engines.golden import Example, pack
from ddcat_serve.errors import ServeError
from ddcat_serve.http.app import create_app
from ddcat_serve.inference import watching
from ddcat_serve.inference.model_registry import Drain
from ddcat_serve.inference.repository import Repository, open_repository
from ddcat_serve.observe.metrics import Metrics
from ddcat_serve.settings import Settings
from tests.bundles import CLASSES, small_bundle, small_graph, small_manifest, with_golden
from tests.keys import write_keys
from tests.serve.payloads import as_labels, as_png
from tests.serve.test_passports import judged

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
def start(
    folder: Path, client_of: Callable[[FastAPI], httpx.Client], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Server]]:
    monkeypatch.setattr("ddcat_serve.inference.capacity._MAX_PIXELS", 2**12)  # a short warm-up
    monkeypatch.setattr("ddcat_serve.inference.warm_up._TIMING_SECONDS", 0.005)
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


def otherwise(path: Path, oracle: Callable, picture: np.ndarray) -> Bundle:
    """A bundle whose golden labels are others than its engine gives."""
    content = small_graph()
    labels = (oracle(picture[None])[0][0] + 1) % 4
    packed = pack(Example(name, picture, labels) for name in ("clean.0", "adversarial.0"))
    files = {"model.onnx": content, "golden.safetensors": packed}
    manifest = with_golden(path.with_name("right"), oracle, picture).manifest
    about = manifest.golden.model_copy(update={"images": 1}) if manifest.golden else None
    shutil.rmtree(path.with_name("right"))
    return write_bundle(path, manifest.model_copy(update={"files": entries(files), "golden": about}), files)


def test_the_newest_version_answers_and_a_load_swaps_to_a_newer_one(
    start: Callable, folder: Path, picture: np.ndarray, oracle: Callable
) -> None:
    first = small_bundle(folder / "seg" / "2")
    server = start()
    assert answering(server, picture) == ("2", first.digest)
    assert server.index() == {"2": ("READY", ""), "1": ("UNAVAILABLE", "")}
    newer = with_golden(folder / "seg" / "10", oracle, picture)  # as a number it is the highest
    assert answering(server, picture) == ("2", first.digest)
    done = server.post("load")
    assert (done.status_code, done.json()["version"], done.json()["before"]) == (200, "10", "2")
    assert answering(server, picture) == ("10", newer.digest)
    np.testing.assert_array_equal(as_labels(server.segment(picture).content), oracle(picture[None])[0][0])
    assert server.client.get("/v2/models/seg").json()["versions"] == ["10"]
    assert server.client.get("/v2/models/seg/versions/2").status_code == 404
    again = server.post("load")
    assert (again.json()["version"], again.json()["before"]) == ("10", "10")  # the same bundle: nothing is opened
    assert server.metric('ddcat_swaps_total{model="seg"}') == 1
    assert server.metric('ddcat_model_version{model="seg"}') == 10
    assert server.client.get("/v2").json()["parameters"]["settings"]["repository"] is True  # and not where it is
    assert "model_repository" in server.client.get("/v2").json()["extensions"]


BAD: dict[str, tuple[Callable[..., object], str]] = {
    "a tampered file": (lambda path, **_: (small_bundle(path).path / "model.onnx").write_bytes(b"x"), "not the file that was"),
    "a missing file": (lambda path, **_: (small_bundle(path).path / "model.onnx").unlink(), "cannot be read"),
    "one file too many": (lambda path, **_: (small_bundle(path).path / "more").write_bytes(b""), "is not listed"),
    "no bundle": (lambda path, **_: path.mkdir(), "holds no readable manifest.json"),
    "a link to elsewhere": (
        lambda path, outside, **_: path.symlink_to(small_bundle(outside).path), "leads out of the repository",
    ),
    "refused by the gate": (lambda path, **_: judged(small_bundle(path), "refuse"), "the gate refused this bundle"),
    "another answer to its golden images": (
        lambda path, oracle, picture, **_: otherwise(path, oracle, picture), "does not answer as it did when it was exported",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_bad_bundle_never_answers_and_the_old_one_goes_on(
    start: Callable, folder: Path, tmp_path: Path, picture: np.ndarray, oracle: Callable, case: str
) -> None:
    make, said = BAD[case]
    server = start()
    before = answering(server, picture)
    make(folder / "seg" / "2", outside=tmp_path / "outside", oracle=oracle, picture=picture)
    seen: list[str] = []
    ended = threading.Event()

    def ask() -> None:
        while not ended.is_set():
            response = server.segment(picture)
            seen.append(f"{response.status_code} {response.headers.get('x-ddcat-version')}")

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        refused = server.post("load")
    finally:
        ended.set()
        asking.join()
    assert refused.status_code == 400
    told = refused.json()["error"]
    assert told.startswith("load failed for model 'seg', version 2: ")
    assert said in told
    assert str(folder) not in told
    assert set(seen) == {"200 1"}
    assert answering(server, picture) == before
    assert server.index()["2"][0] == "UNAVAILABLE"
    assert said in server.index()["2"][1]
    assert server.metric('ddcat_refused_loads_total{model="seg"}') == 1
    assert server.metric('ddcat_swaps_total{model="seg"}') == 0


@pytest.mark.parametrize("policy", ["a signature", "a passport"])
def test_a_load_asks_for_the_same_proof_as_the_start(
    start: Callable, folder: Path, tmp_path: Path, picture: np.ndarray, policy: str
) -> None:
    private, public = write_keys(tmp_path, "ours")
    shutil.rmtree(folder / "seg" / "1")
    bundle = small_bundle(tmp_path / "any")
    signed = write_bundle(folder / "seg" / "1", bundle.manifest, bundle.files, key=private)
    judged(signed, "pass", key=private)
    trust = TrustPolicy(public) if policy == "a signature" else TrustPolicy(passport=True)
    server = start(trust)
    small_bundle(folder / "seg" / "2")
    assert {"a signature": "is not signed", "a passport": "has no passport"}[policy] in server.post("load").json()["error"]
    assert answering(server, picture) == ("1", signed.digest)


def test_a_start_passes_over_refused_versions_and_fails_if_none_is_left(start: Callable, folder: Path) -> None:
    judged(small_bundle(folder / "seg" / "2"), "refuse")
    server = start()
    assert server.index()["1"] == ("READY", "")
    assert "the gate refused this bundle" in server.index()["2"][1]
    (folder / "seg" / "1" / "model.onnx").write_bytes(b"another")
    with pytest.raises(Exception, match="the gate refused this bundle"):  # that of the newest
        start()
    shutil.rmtree(folder / "seg")
    with pytest.raises(ServeError, match=r"holds no bundle: expected folders such as .*/camvid/1"):
        start()


def test_settings_that_need_a_repository_or_a_key(tmp_path: Path) -> None:
    for name, value in (("watch", True), ("shadow", 0.1)):
        with pytest.raises(ServeError, match=f"--{name} needs --repository FOLDER"):
            Settings(**{name: value}).load_refusal()
    with pytest.raises(ServeError, match="--shadow needs --api-key"):
        Settings(repository=tmp_path, shadow=0.1).load_refusal()
    assert Settings(repository=tmp_path, api_key="a long secret").load_refusal() is None


def test_requests_without_a_configured_key_load_nothing(start: Callable, folder: Path) -> None:
    server = start(api_key=None)
    small_bundle(folder / "seg" / "2")
    for verb in ("load", "unload"):
        response = server.post(verb)
        assert (response.status_code, response.json()["error"]) == (
            403,
            "models are loaded and unloaded by requests with an API key only: start the server with DDCAT_SERVE_API_KEY",
        )
    assert server.index()["1"][0] == "READY"
    assert "model_repository" not in server.client.get("/v2").json()["extensions"]


CONFIG = {
    '{"version_policy": {"specific": {"versions": [2]}}}': "2",
    '{"version_policy": {"specific": {"versions": ["1"]}}}': "1",
    '{"version_policy": {"latest": {"num_versions": 1}}}': "3",
    "{}": "3",
}


def test_a_load_may_name_a_version_as_triton_does(start: Callable, folder: Path, picture: np.ndarray) -> None:
    server = start()
    for version in ("2", "3"):
        small_bundle(folder / "seg" / version)
    for config, version in CONFIG.items():
        assert server.post("load", {"parameters": {"config": config}}).json()["version"] == version
        assert answering(server, picture)[0] == version


ONE = '{"version_policy": {"specific": {"versions": [1]}}}'


ASKED: list[tuple[str, dict[str, Any], int, str]] = [
        ("load", {"parameters": {"config": "no JSON"}}, 400, "config is not a text of JSON"),
        ("load", {"parameters": {"config": "[]"}}, 400, "config is not a JSON object"),
        ("load", {"parameters": {"config": {"a": 1}}}, 400, "config is not a text of JSON"),
        ("load", {"parameters": {"config": '{"backend": "onnxruntime"}'}}, 400, "config has 'backend'"),
        ("load", {"parameters": {"config": '{"version_policy": {"all": {}}}'}}, 400, "other versions than the newest or one"),
        ("load", {"parameters": {"config": '{"version_policy": {"specific": {"versions": [1, 2]}}}'}}, 400, "other versions"),
        ("load", {"parameters": {"config": '{"version_policy": {"specific": {"versions": [7]}}}'}}, 404, "has no version '7'"),
        (
            "load", {"parameters": {"config": '{"version_policy": {"specific": {"versions": ["../1"]}}}'}}, 404,
            "has no version '../1'",
        ),
        ("load", {"parameters": {"file:1/model.onnx": "AAAA"}}, 400, "no file is taken from a request"),
        ("load", {"parameters": {"path": "/tmp"}}, 400, "does not know the parameter 'path'"),
        ("load", {"parameters": {"rollback": 1}}, 400, "expected true or false"),
        ("load", {"parameters": {"rollback": True}}, 400, "there is nothing to roll back to"),
        ("load", {"parameters": {"rollback": True, "config": ONE}}, 400, "leave config out"),
        ("load", {"parameters": []}, 200, ""),
        ("load", {"parameters": [1]}, 400, "parameters is not a JSON object"),
        ("unload", {"parameters": {"all": True}}, 400, "does not know the parameter 'all'"),
    ]  # fmt: skip


def test_what_a_request_may_ask_for(start: Callable) -> None:
    server = start()
    for verb, body, status, said in ASKED:
        response = server.post(verb, body)
        assert response.status_code == status, body
        assert said in response.json().get("error", "")
    assert server.index() == {"1": ("READY", "")}


def test_only_names_of_the_folder_are_loaded(start: Callable) -> None:
    server = start()
    for name in ("other", "..", ".hidden", "seg%2F1", "%2Ftmp"):
        response = server.post("load", name=name)
        assert response.status_code in (404, 405)
        assert "repository has no model" in response.json()["error"] or "/v2/repository/" in response.json()["error"]


def test_a_roll_back_undoes_the_last_load(start: Callable, folder: Path, picture: np.ndarray, oracle: Callable) -> None:
    server = start()
    for version in ("2", "3"):
        with_golden(folder / "seg" / version, oracle, picture)
        assert server.post("load").json()["version"] == version
    back = {"parameters": {"rollback": True}}
    assert (server.post("load", back).json(), answering(server, picture)[0]) == (
        {"name": "seg", "version": "2", "before": "3", "shadow": None, "report": None},
        "2",
    )
    assert server.post("load", back).json()["version"] == "1"
    assert server.post("load", back).status_code == 400
    assert server.post("load").json()["version"] == "3"
    shutil.rmtree(folder / "seg" / "1")
    otherwise(folder / "seg" / "1", oracle, picture)  # not the one that has answered
    refused = server.post("load", back)
    assert refused.status_code == 400
    assert "and not the expected" in refused.json()["error"]
    assert answering(server, picture)[0] == "3"


def test_an_unloaded_model_is_gone_and_comes_back(start: Callable, folder: Path, picture: np.ndarray) -> None:
    server = start()
    assert server.client.get("/v2/health/ready").status_code == 200
    assert server.post("unload", {"parameters": {"unload_dependents": False}}).json()["version"] is None
    assert (server.segment(picture).status_code, server.client.get("/v2/models/seg").status_code) == (404, 404)
    assert server.segment(picture).json()["error"] == "no model is loaded now"
    assert server.client.get("/v2/health/ready").status_code == 503
    assert server.index() == {"1": ("UNAVAILABLE", "")}
    assert server.post("unload").json()["error"] == "seg is not loaded"
    assert server.post("load", {"parameters": {"rollback": True}}).json()["version"] == "1"
    assert answering(server, picture)[0] == "1"


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
    while server.repository.models["seg"]["1"].worker.waiting_pixels < 2 * picture.shape[0] * picture.shape[1]:
        time.sleep(0.01)
    small_bundle(folder / "seg" / "2")
    assert server.post("load").status_code == 200
    assert answering(server, picture)[0] == "2"  # while the old one still computes
    assert not closed
    go.set()
    for thread in asking:
        thread.join()
    assert [(answer.status_code, answer.headers["x-ddcat-version"]) for answer in answers] == [(200, "1")] * 3
    while old not in closed:
        time.sleep(0.01)


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
    while server.index()["2"][0] != "LOADING":
        time.sleep(0.01)
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
        while not opened:
            time.sleep(0.01)
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


def shifted(path: Path) -> Bundle:
    """A bundle that says class 0 for green, whose pixels the small one calls 2."""
    graph = onnx.load_from_string(small_graph())
    for tensor in graph.graph.initializer:
        if tensor.name == "weight":
            values = onnx.numpy_helper.to_array(tensor).copy()
            values[[0, 2]] = values[[2, 0]]
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, "weight"))
        if tensor.name == "bias":
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.array([0, 0, 100, 0], np.float32), "bias"))
    content = graph.SerializeToString()
    return write_bundle(path, small_manifest(content), {"model.onnx": content})


def test_a_shadow_is_compared_and_answers_only_after_the_second_load(
    start: Callable, folder: Path, picture: np.ndarray, oracle: Callable
) -> None:
    server = start(shadow=0.5)
    other = shifted(folder / "seg" / "2")
    labels, logits = oracle(picture[None])
    labels, swapped = labels[0], logits[:, [2, 1, 0, 3]].argmax(1)[0]
    first = server.post("load").json()
    assert (first["version"], first["before"], first["shadow"]) == ("1", "1", "2")
    for _ in range(8):
        answer = server.segment(picture)
        assert answer.headers["x-ddcat-version"] == "1"
        np.testing.assert_array_equal(as_labels(answer.content), labels)
    until = time.monotonic() + 20
    while server.metric('ddcat_shadow_images_total{model="seg",version="2"}') != 4:  # half of them
        assert time.monotonic() < until
        time.sleep(0.02)
    equal = int((labels == swapped).sum())
    assert 0 < equal < labels.size
    assert server.metric('ddcat_shadow_equal_pixels_total{model="seg",version="2"}') == 4 * equal
    assert server.metric('ddcat_shadow_pixels_total{model="seg",version="2"}') == 4 * labels.size
    state, reason = server.index()["2"]
    assert (state, reason.startswith(f"shadow: {equal / labels.size:.4%} equal labels in 4 images (0 skipped, 0 failed)")) == (
        "LOADING", True,
    )  # fmt: skip
    assert server.client.get("/v2/models/seg/versions/2").status_code == 404
    assert server.metric('ddcat_swaps_total{model="seg"}') == 0
    second = server.post("load").json()
    assert (second["version"], second["before"], second["report"]["images"]) == ("2", "1", 4)
    answer = server.segment(picture)
    assert answer.headers["x-ddcat-bundle"] == other.digest
    np.testing.assert_array_equal(as_labels(answer.content), swapped)
    assert server.metric('ddcat_shadow_images_total{model="seg",version="2"}') is None


def test_a_shadow_ends_by_a_roll_back_or_another_load(start: Callable, folder: Path, picture: np.ndarray) -> None:
    server = start(shadow=1)
    shifted(folder / "seg" / "2")
    assert server.post("load").json()["shadow"] == "2"
    candidate = server.repository._places["seg"].shadow.candidate
    assert server.post("load", {"parameters": {"rollback": True}}).json()["version"] == "1"
    assert candidate.worker.state == "stopping"
    assert server.index() == {"1": ("READY", ""), "2": ("UNAVAILABLE", "")}
    assert server.post("load").json()["shadow"] == "2"
    small_bundle(folder / "seg" / "3")
    assert server.post("load").json()["shadow"] == "3"  # and no more 2
    assert server.index()["2"] == ("UNAVAILABLE", "")
    assert answering(server, picture)[0] == "1"


def test_a_shadow_that_fails_or_does_not_take_an_image_changes_no_answer(
    start: Callable, folder: Path, picture: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = start(shadow=1)
    content = small_graph(16, 24)
    write_bundle(folder / "seg" / "2", small_manifest(content, "small", 16, 24), {"model.onnx": content})
    assert server.post("load").json()["shadow"] == "2"
    assert server.segment(picture).status_code == 200  # of a size that the shadow does not take
    [(model, report)] = server.repository.shadows()
    assert (report.images, report.failed) == (0, 1)
    assert "no image was compared yet" in server.index()["2"][1]
    small = picture[:16, :24]
    infer = CheckedEngine.infer

    def broken(engine: CheckedEngine, images: np.ndarray) -> Outputs:
        if engine is model.engine:
            raise RuntimeError("broken")
        return infer(engine, images)

    monkeypatch.setattr(CheckedEngine, "infer", broken)
    assert server.segment(small).status_code == 200
    until = time.monotonic() + 20
    while server.repository.shadows()[0][1].failed < 2:
        assert time.monotonic() < until
        time.sleep(0.02)


def test_all_names_of_a_folder_are_served_and_swapped_apart(start: Callable, folder: Path, picture: np.ndarray) -> None:
    small_bundle(folder / "another" / "4")
    server = start()
    small_bundle(folder / "another" / "5")
    assert server.post("load", name="another").json()["version"] == "5"
    for model, version in (("seg", "1"), ("another", "5")):
        answer = server.client.post(f"/v1/segment?model={model}", content=as_png(picture))
        assert (answer.status_code, answer.headers["x-ddcat-version"]) == (200, version)
    small_bundle(folder / "third" / "1")
    assert server.post("load", name="third").status_code == 200  # a name that was not there at the start
    assert server.client.get("/v2/models/third/ready").status_code == 200
    assert len(CLASSES.names) == len(json.loads(server.client.get("/v2/models/third").content)["parameters"]["classes"])
