"""What clients of Triton ask beside the protocol."""

import dataclasses
from collections.abc import Callable

import httpx
import numpy as np
import pytest

from ddcat.bundle import Bundle
from ddcat.classes import Classes
from ddcat_serve.errors import RequestError
from ddcat_serve.http.app import create_app
from ddcat_serve.http.v2_metadata import model_statistics
from ddcat_serve.inference.model_registry import Models
from ddcat_serve.settings import Settings
from tests.serve.payloads import IMAGE, INFER, body_of


def test_configuration_index_and_statistics(bundle: Bundle, serving: Callable) -> None:
    client = serving(bundle.path)
    assert client.get("/v2/models/small/config").json() == {
        "name": "small",
        "platform": "ddcat_ort",
        "backend": "ddcat",
        "max_batch_size": 4,
        "input": [{"name": "image", "data_type": "TYPE_UINT8", "dims": [-1, -1, 3]}],
        "output": [
            {"name": "labels", "data_type": "TYPE_UINT8", "dims": [-1, -1]},
            {"name": "logits", "data_type": "TYPE_FP32", "dims": [4, -1, -1]},
        ],
    }
    assert client.get("/v2/models/small/versions/1/config").status_code == 200
    assert client.get("/v2/models/small/versions/2/config").status_code == 404
    assert client.get("/v2/models/other/config").status_code == 404
    ready = [{"name": "small", "version": "1", "state": "READY", "reason": ""}]
    for content in (b"", b"{}", b'{"ready": true}', b'{"ready": null}'):
        assert client.post("/v2/repository/index", content=content).json() == ready
    assert client.post("/v2/repository/index", content=b'{"ready": 1}').status_code == 400
    assert client.post("/v2/repository/index", content=b"[]").status_code == 400
    for verb in ("load", "unload"):
        response = client.post(f"/v2/repository/models/small/{verb}")
        assert (response.status_code, "neither loaded nor unloaded" in response.json()["error"]) == (400, True)
    client.post(INFER, json=body_of(np.repeat(IMAGE, 3, 0)))
    client.post(INFER, json=body_of(IMAGE))
    [found] = client.get("/v2/models/small/stats").json()["model_stats"]
    assert (found["name"], found["version"], found["inference_count"], found["execution_count"]) == ("small", "1", 4, 2)
    stages = found["inference_stats"]
    assert {stage: stages[stage]["count"] for stage in ("success", "fail", "queue", "compute_infer")} == {
        "success": 2, "fail": 0, "queue": 2, "compute_infer": 2,
    }  # fmt: skip
    assert stages["success"]["ns"] == stages["queue"]["ns"] + stages["compute_infer"]["ns"] > 0
    assert [(batch["batch_size"], batch["compute_infer"]["count"]) for batch in found["batch_stats"]] == [(1, 1), (3, 1)]
    assert client.get("/v2/models/stats").json()["model_stats"] == [found]
    assert client.get("/v2/models/small/versions/1/stats").json()["model_stats"] == [found]
    assert client.get("/v2/models/small/versions/2/stats").status_code == 404


def test_a_fixed_size_is_in_the_metadata(make_bundle: Callable, serving: Callable) -> None:
    client = serving(make_bundle("one", 64, 96).path)
    assert client.get("/v2/models/one").json()["inputs"][0]["shape"] == [-1, 64, 96, 3]
    assert client.get("/v2/models/one").json()["outputs"][0]["shape"] == [-1, 64, 96]


def test_a_model_called_stats_has_its_metadata_where_statistics_of_all_would_be(
    make_bundle: Callable, serving: Callable
) -> None:
    assert serving(make_bundle("stats").path).get("/v2/models/stats").json()["name"] == "stats"


def test_a_version_without_a_model_has_no_statistics(models: Models) -> None:
    with pytest.raises(RequestError, match="a version is named without its model"):
        model_statistics(create_app(models, Settings()).state.server_state, None, "1")


def test_a_manifest_with_nan_is_shown(models: Models, client: httpx.Client) -> None:
    model = models["small"]["1"]
    manifest = model.bundle.manifest
    wrong = manifest.preprocessing.model_copy(update={"mean": (float("nan"), 0.0, float("inf"))})
    bundle = dataclasses.replace(model.bundle, manifest=manifest.model_copy(update={"preprocessing": wrong}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "bundle", bundle)
        response = client.get("/v2/models/small")
    assert response.status_code == 200
    assert response.json()["parameters"]["preprocessing"]["mean"] == [None, 0.0, None]


def test_two_classes_of_one_name_are_one_series(models: Models, client: httpx.Client) -> None:
    model = models["small"]["1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "classes", Classes(("road", "red", "road", "road"), model.classes.palette))
        lines = client.get("/metrics").text.splitlines()
    series = [line.rpartition(" ")[0] for line in lines if not line.startswith("#")]
    assert len(series) == len(set(series))
    assert 'ddcat_class_pixels_total{class="road",model="small",version="1"}' in series
