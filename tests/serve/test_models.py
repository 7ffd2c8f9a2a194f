"""Which of several bundles answers: by name, and by version."""

import contextlib
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import pytest
from fastapi import FastAPI

from ddcat.bundle import Bundle, Trust, write_bundle
from ddcat.errors import BundleError
from ddcat_serve.app import create_app
from ddcat_serve.engines.base import GraphEngine, Outputs
from ddcat_serve.errors import ServeError
from ddcat_serve.models import Source, load_models, parse_source
from ddcat_serve.settings import Settings
from tests.keys import write_keys
from tests.serve.answers import refused
from tests.serve.pictures import as_labels, as_png


def test_where_several_models_are_served_one_is_chosen_by_name(
    make_bundle: Callable[..., Bundle], client_of: Callable[[FastAPI], httpx.Client], oracle: Callable, picture: np.ndarray
) -> None:
    bundles = [make_bundle("any"), make_bundle("fixed", 37, 53, logits=False)]
    with load_models([bundle.path for bundle in bundles], settings=Settings(), threads=1) as models:
        client = client_of(create_app(models, Settings()))
        assert refused(client.post("/v1/segment", content=as_png(picture))) == (
            400,
            "several models are served: choose one with ?model=, of any, fixed",
        )
        for bundle in bundles:
            response = client.post(f"/v1/segment?model={bundle.manifest.name}", content=as_png(picture))
            np.testing.assert_array_equal(as_labels(response.content), oracle(picture[None])[0][0])
            assert response.headers["x-ddcat-bundle"] == bundle.digest
        message = refused(client.post("/v1/segment?model=fixed", content=as_png(picture[:36])))
        assert message == (400, "Image is 53 x 36; this model takes only 53 x 37 (width x height)")


def test_bundles_of_one_name_are_versions(
    make_bundle: Callable[..., Bundle], client_of: Callable[[FastAPI], httpx.Client], picture: np.ndarray
) -> None:
    free, fixed = make_bundle("any"), make_bundle("other", 37, 53, logits=False)
    with load_models([free.path, Source(fixed.path, "any")], settings=Settings(), threads=1) as models:
        client = client_of(create_app(models, Settings()))
        assert client.get("/v2/models/any").json()["versions"] == ["1", "2"]
        assert client.get("/v2/models/any").json()["parameters"]["bundle"] == fixed.digest  # the last one named
        for version, bundle in (("1", free), ("2", fixed)):
            assert client.get(f"/v2/models/any/versions/{version}").json()["parameters"]["bundle"] == bundle.digest
            response = client.post(f"/v1/segment?version={version}", content=as_png(picture))
            assert response.headers["x-ddcat-bundle"] == bundle.digest
            assert response.headers["x-ddcat-version"] == version
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
        pytest.raises(ServeError, match=r"'a/b' is no name of a model: letters, digits, '\.', '-' and '_' would be right"),
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
    monkeypatch.setattr("ddcat_serve.models.open_engine", lambda *given, **options: opened.append(given))
    with (
        pytest.raises(BundleError, match=r"passport\.json is not signed"),
        load_models([signed.path], settings=Settings(), trust=Trust(public)),
    ):
        raise AssertionError("it is loaded")
    assert not opened


def test_a_real_engine_that_hangs_is_opened_again_from_its_bundle(
    bundle: Bundle, client_of: Callable[[FastAPI], httpx.Client], oracle: Callable, picture: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    hung: list[GraphEngine] = []
    go, infer = threading.Event(), GraphEngine.infer

    def once(engine: GraphEngine, images: np.ndarray) -> Outputs:
        if not hung:
            hung.append(engine)
            go.wait(20)
        assert len(hung) == 1
        assert engine is not hung[0] or go.is_set()
        return infer(engine, images)

    settings = Settings(hangs_after=0.2)
    with load_models([bundle.path], settings=settings, threads=1) as models:
        monkeypatch.setattr(GraphEngine, "infer", once)
        client = client_of(create_app(models, settings))
        assert client.post("/v1/segment", content=as_png(picture)).status_code == 503
        while not models["small"]["1"].ready:
            time.sleep(0.01)
        answer = client.post("/v1/segment", content=as_png(picture))  # the first engine still hangs
        np.testing.assert_array_equal(as_labels(answer.content), oracle(picture[None])[0][0])
        go.set()
