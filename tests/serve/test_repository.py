"""Loads by request: what is verified answers at once, and nothing else ever does."""

import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ddcat.bundle import Bundle, TrustPolicy, entries, write_bundle
from ddcat.engines.golden import Example, pack
from ddcat_serve.errors import ServeError
from ddcat_serve.settings import Settings
from tests.bundles import CLASSES, small_bundle, small_graph, with_golden
from tests.keys import write_keys
from tests.serve.payloads import as_labels, as_png
from tests.serve.repository_server import answering, folder, start
from tests.serve.test_passports import judged

__all__ = ["folder", "start"]  # fixtures


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
        ("load", {"parameters": {"config": '{"version_policy": {"all": {}}}'}}, 400, "names neither the newest"),
        ("load", {"parameters": {"config": '{"version_policy": {"specific": {"versions": [1, 2]}}}'}}, 400, "nor a single one"),
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
        ("load", {"parameters": {"config": '{"version_policy": {"specific": {"versions": [true]}}}'}}, 400, "nor a single one"),
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
    broken = server.client.post("/v2/repository/models/seg/load", content=b"{")
    assert (broken.status_code, broken.json()["error"]) == (400, "the body is not JSON")
    assert server.index() == {"1": ("READY", "")}


def test_a_folder_that_is_away_is_said_and_changes_nothing(start: Callable, folder: Path, picture: np.ndarray) -> None:
    server = start()
    folder.rename(folder.with_name("away"))
    answers = server.client.post("/v2/repository/index"), server.post("load", name="other")
    assert [answer.status_code for answer in answers] == [503, 503]
    assert answers[0].json()["error"] == "the repository cannot be read now: try again later"
    assert server.repository.folder.fingerprint("seg", "1") == ()
    assert answering(server, picture)[0] == "1"


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
    assert ", expected " in refused.json()["error"]
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
