"""Which of several bundles answers: by name, and by version."""

import asyncio
import contextlib
import gc
import shutil
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import pytest
from fastapi import FastAPI

from ddcat.bundle import Bundle, TrustPolicy, write_bundle
from ddcat.engines.base import CheckedEngine, Outputs
from ddcat.engines.errors import EngineError
from ddcat.errors import BundleError
from ddcat_serve.errors import ServeError
from ddcat_serve.http.app import create_app
from ddcat_serve.inference.model_registry import load_models
from ddcat_serve.inference.sources import Source, parse_source
from ddcat_serve.settings import Settings
from tests.bundles import with_golden
from tests.keys import write_keys
from tests.serve.payloads import as_labels, as_png, asking, refused
from tests.serve.processes import wait_for


def test_one_of_several_models_is_chosen_by_name(
    make_bundle: Callable[..., Bundle], serving: Callable, oracle: Callable, picture: np.ndarray
) -> None:
    bundles = [make_bundle("any"), make_bundle("fixed", 37, 53, logits=False)]
    client = serving(*(bundle.path for bundle in bundles))
    said = "several models are served: choose one with ?model=, of any, fixed"
    assert refused(client.post("/v1/segment", content=as_png(picture))) == (400, said)
    for bundle in bundles:
        response = client.post(f"/v1/segment?model={bundle.manifest.name}", content=as_png(picture))
        np.testing.assert_array_equal(as_labels(response.content), oracle(picture[None])[0][0])
        assert response.headers["x-ddcat-bundle"] == bundle.digest
    message = refused(client.post("/v1/segment?model=fixed", content=as_png(picture[:36])))
    assert message == (400, "Image is 53 x 36; this model takes only 53 x 37 (width x height)")


def test_bundles_of_one_name_are_versions(make_bundle: Callable[..., Bundle], serving: Callable, picture: np.ndarray) -> None:
    free, fixed = make_bundle("any"), make_bundle("other", 37, 53, logits=False)
    client = serving(free.path, Source(fixed.path, "any"))
    assert client.get("/v2/models/any").json()["versions"] == ["1", "2"]
    assert client.get("/v2/models/any").json()["parameters"]["bundle"] == fixed.digest  # the last one named
    for version, bundle in (("1", free), ("2", fixed)):
        assert client.get(f"/v2/models/any/versions/{version}").json()["parameters"]["bundle"] == bundle.digest
        headers = client.post(f"/v1/segment?version={version}", content=as_png(picture)).headers
        assert (headers["x-ddcat-bundle"], headers["x-ddcat-version"]) == (bundle.digest, version)
    assert client.post("/v1/segment", content=as_png(picture)).headers["x-ddcat-version"] == "2"


def test_a_name_may_stand_before_a_bundle_unless_a_folder_is_called_so(tmp_path: Path) -> None:
    assert parse_source("a/b") == Source(Path("a/b"))
    assert parse_source("x=a/b") == Source(Path("a/b"), "x")
    assert parse_source("a/x=b") == Source(Path("a/x=b"))
    (tmp_path / "x=y").mkdir()
    with contextlib.chdir(tmp_path):
        assert parse_source("x=y") == Source(Path("x=y"))


def test_a_name_that_no_address_could_hold_is_refused(bundle: Bundle) -> None:
    with (
        pytest.raises(ServeError, match=r"'a/b' is not a valid name of a model: use letters, digits, '\.', '-' and '_'"),
        load_models([Source(bundle.path, "a/b")], settings=Settings(), threads=1),
    ):
        raise AssertionError("it is loaded")


def test_a_passport_is_refused_before_an_engine_is_opened(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private, public = write_keys(tmp_path, "ours")
    signed = write_bundle(tmp_path / "signed", bundle.manifest, bundle.files, key=private)
    (signed.path / "passport.json").write_text("{}")
    opened = []
    monkeypatch.setattr("ddcat_serve.inference.model_registry.open_engine", lambda *given, **options: opened.append(given))
    with (
        pytest.raises(BundleError, match=r"passport\.json is not signed"),
        load_models([signed.path], settings=Settings(), trust=TrustPolicy(public)),
    ):
        raise AssertionError("it is loaded")
    assert not opened


def test_a_real_engine_that_hangs_is_opened_again_from_its_bundle(
    bundle: Bundle, client_of: Callable[[FastAPI], httpx.Client], oracle: Callable, picture: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    hung: list[CheckedEngine] = []
    go, infer = threading.Event(), CheckedEngine.infer

    def once(engine: CheckedEngine, images: np.ndarray) -> Outputs:
        if not hung:
            hung.append(engine)
            go.wait(20)
        assert len(hung) == 1
        assert engine is not hung[0] or go.is_set()
        return infer(engine, images)

    settings = Settings(engine_timeout=0.2)
    with load_models([bundle.path], settings=settings, threads=1) as models:
        monkeypatch.setattr(CheckedEngine, "infer", once)
        client = client_of(create_app(models, settings))
        assert client.post("/v1/segment", content=as_png(picture)).status_code == 503
        wait_for(lambda: models["small"]["1"].ready)
        answer = client.post("/v1/segment", content=as_png(picture))  # the first engine still hangs
        np.testing.assert_array_equal(as_labels(answer.content), oracle(picture[None])[0][0])
        go.set()


@pytest.mark.parametrize("then", ["another one", "another one, signed by the same key", "an altered file", "nothing"])
def test_a_bundle_that_replaced_another_is_not_served(
    make_bundle: Callable[..., Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, picture: np.ndarray, then: str,
    client_of: Callable[[FastAPI], httpx.Client],
) -> None:  # fmt: skip
    private, public = write_keys(tmp_path, "ours")
    first, other = make_bundle("first"), make_bundle("other", logits=False)
    served = write_bundle(tmp_path / "served", first.manifest, first.files, key=private)
    go = threading.Event()
    settings = Settings(engine_timeout=0.2)
    with load_models([served.path], settings=settings, threads=1, trust=TrustPolicy(public)) as models:
        served.path.rename(tmp_path / "moved")
        if then.startswith("another"):
            write_bundle(served.path, other.manifest, other.files, key=private if "signed" in then else None)
        elif then == "an altered file":
            shutil.copytree(tmp_path / "moved", served.path)
            (served.path / "model.onnx").write_bytes(other.files["model.onnx"])
        infer = CheckedEngine.infer
        monkeypatch.setattr(CheckedEngine, "infer", lambda engine, images: (go.wait(20), infer(engine, images))[1])
        app = create_app(models, settings)
        assert client_of(app).post("/v1/segment", content=as_png(picture)).status_code == 503
        monkeypatch.undo()
        model = models["first"]["1"]
        wait_for(lambda: model.worker.state != "restarting")
        assert model.worker.state == "broken"
        assert not app.state.server_state.live
        assert client_of(app).post("/v1/segment", content=as_png(picture)).status_code == 503
        go.set()


def test_an_engine_that_is_opened_again_and_answers_otherwise_is_not_served(
    tmp_path: Path, oracle: Callable, picture: np.ndarray, monkeypatch: pytest.MonkeyPatch,
    client_of: Callable[[FastAPI], httpx.Client],
) -> None:  # fmt: skip
    bundle = with_golden(tmp_path / "right", oracle, picture)
    infer, go = CheckedEngine.infer, threading.Event()
    settings = Settings(engine_timeout=0.3)
    with load_models([bundle.path], settings=settings, threads=1) as models:
        model = models["small"]["1"]
        first = model.engine

        def otherwise(engine: CheckedEngine, images: np.ndarray) -> Outputs:
            if engine is first:
                go.wait(20)
            return Outputs((infer(engine, images).labels + 1) % 4)

        monkeypatch.setattr(CheckedEngine, "infer", otherwise)
        client = client_of(create_app(models, settings))
        assert client.post("/v1/segment", content=as_png(picture)).status_code == 503
        wait_for(lambda: model.worker.state != "restarting")
        assert model.worker.state == "broken"
        go.set()


@pytest.mark.parametrize(
    ("end", "how"),
    [("answered", "one image"), ("answered", "a tensor"), ("failed", "several"), ("refused", "several"), ("late", "one image")],
)
def test_no_request_keeps_its_images_without_garbage_collection(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, picture: np.ndarray, end: str, how: str
) -> None:
    known: list[weakref.ref[np.ndarray]] = []
    infer = CheckedEngine.infer

    def seen(engine: CheckedEngine, images: np.ndarray) -> Outputs:
        known.append(weakref.ref(images if images.base is None else images.base))
        if end == "failed":
            raise EngineError("the runtime broke")
        if end == "late":
            time.sleep(0.3)
        return infer(engine, images)

    status = {"answered": 200, "failed": 500, "refused": 413, "late": 504}[end]
    timeout = 0.2 if end == "late" else 10.0
    # else a queue that has seen late answers refuses what comes next
    monkeypatch.setattr("ddcat_serve.inference.admission_queue._EWMA_WEIGHT", 0.0)

    async def ask(app: FastAPI) -> None:
        async with asking(app) as client:
            for _ in range(2):
                if how == "a tensor":
                    about = {"name": "image", "shape": [1, *picture.shape], "datatype": "UINT8", "data": [picture.tolist()]}
                    body = {"inputs": [about], "parameters": {"timeout": int(1e6 * timeout)}}
                    answer = await client.post("/v2/models/small/infer", json=body)
                elif how == "several":
                    files = [("image", as_png(picture)), ("image", as_png(picture[::-1]))]
                    answer = await client.post(f"/v1/segment?timeout={timeout}", files=files)
                else:
                    answer = await client.post(f"/v1/segment?timeout={timeout}", content=as_png(picture))
                assert answer.status_code == status
                await asyncio.sleep(0.5 if end == "late" else 0.02)

    with load_models([bundle.path], settings=Settings(), threads=1) as models:
        if end == "refused":
            monkeypatch.setattr(models["small"]["1"].worker._queue, "_rate", 1.0)  # pixels per second
        monkeypatch.setattr(CheckedEngine, "infer", seen)
        app = create_app(models, Settings())
        asyncio.run(ask(app))
        gc.collect()
        gc.disable()
        try:
            known.clear()
            asyncio.run(ask(app))
            models["small"]["1"].monitor.close()  # which looks at answers a little later
            assert [ref() is None for ref in known] == [True] * len(known)
            assert bool(known) == (end != "refused")
        finally:
            gc.enable()
