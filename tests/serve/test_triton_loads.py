"""Triton's clients load and unload models of a running server, over HTTP and gRPC, as they would those of a Triton."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

from tests.bundles import small_bundle
from tests.serve.processes import free_port, server

KEY = "a long secret"
IMAGES = np.random.default_rng(5).integers(0, 256, (1, 21, 30, 3)).astype(np.uint8)
SECOND = '{"version_policy": {"specific": {"versions": [2]}}}'


class Running(NamedTuple):
    folder: Path
    http: str
    grpc: str


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server over versions 1 and 2 of `small`, a tampered version 3, and `other`."""
    folder = tmp_path_factory.mktemp("triton") / "models"
    for name, version in (("small", "1"), ("small", "2"), ("small", "3"), ("other", "1")):
        small_bundle(folder / name / version)
    (folder / "small" / "3" / "model.onnx").write_bytes(b"tampered")
    port = free_port()
    with server("--repository", folder, "--grpc-port", port, "--api-key", KEY) as (_, address):
        yield Running(folder, address.removeprefix("http://"), f"127.0.0.1:{port}")


def key() -> dict[str, str]:
    """A new one each time: the HTTP client adds to it."""
    return {"authorization": f"Bearer {KEY}"}


def clients(running: Running) -> dict[str, tuple[Any, Any]]:
    return {
        "http": (triton_http.InferenceServerClient(running.http, network_timeout=300), triton_http),
        "grpc": (triton_grpc.InferenceServerClient(running.grpc), triton_grpc),
    }


def image(kind: Any) -> list[Any]:
    sent = kind.InferInput("image", list(IMAGES.shape), "UINT8")
    sent.set_data_from_numpy(IMAGES)
    return [sent]


def states(client: Any) -> dict[str, tuple[str, str]]:
    """States and reasons of the versions of `small`."""
    found = client.get_model_repository_index(headers=key())
    if not isinstance(found, list):
        found = [{"name": m.name, "version": m.version, "state": m.state, "reason": m.reason} for m in found.models]
    return {entry["version"]: (entry["state"], entry["reason"]) for entry in found if entry["name"] == "small"}


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_models_are_loaded_swapped_and_unloaded(running: Running, oracle: Callable, protocol: str) -> None:
    client, kind = clients(running)[protocol]

    def version() -> str:
        result = client.infer("small", image(kind), headers=key())
        np.testing.assert_array_equal(result.as_numpy("labels"), oracle(IMAGES)[0])
        response = result.get_response()
        found: str = response["model_version"] if isinstance(response, dict) else response.model_version
        return found

    client.load_model("small", headers=key(), config='{"version_policy": {"specific": {"versions": [1]}}}')
    assert version() == "1"
    client.load_model("small", headers=key(), config=SECOND)
    assert version() == "2"
    with pytest.raises(InferenceServerException, match="load failed for model 'small', version 3") as caught:
        client.load_model("small", headers=key())  # the newest
    assert caught.value.status() in ("400", "StatusCode.INVALID_ARGUMENT")
    assert version() == "2"
    found = states(client)
    assert (found["1"][0], found["2"]) == ("UNAVAILABLE", ("READY", ""))
    assert "is not the file that was exported" in found["3"][1]
    client.unload_model("small", headers=key())
    assert not client.is_model_ready("small", headers=key())
    assert client.is_model_ready("other", headers=key())
    with pytest.raises(InferenceServerException, match="no model is named 'small'; there is other"):
        client.infer("small", image(kind), headers=key())
    assert {state for state, _ in states(client).values()} == {"UNAVAILABLE"}
    client.load_model("small", headers=key(), config=SECOND)
    assert version() == "2"
    extensions = client.get_server_metadata(headers=key())
    assert "model_repository" in (extensions["extensions"] if protocol == "http" else extensions.extensions)


def test_files_of_a_request_and_a_roll_back_over_grpc(running: Running) -> None:
    client, _ = clients(running)["grpc"]
    for name in ("../small", "small/1", "/etc"):
        with pytest.raises(InferenceServerException, match="the repository has no model"):
            client.load_model(name, headers=key())
    with pytest.raises(InferenceServerException, match="no file is taken from a request"):
        client.load_model("small", headers=key(), config="{}", files={"file:1/model.onnx": b"x"})
    metadata = [("authorization", f"Bearer {KEY}")]
    with grpc.insecure_channel(running.grpc) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        for version in (1, 2):
            config = f'{{"version_policy": {{"specific": {{"versions": [{version}]}}}}}}'
            client.load_model("small", headers=key(), config=config)
        request = service_pb2.RepositoryModelLoadRequest(model_name="small")
        request.parameters["rollback"].bool_param = True
        stub.RepositoryModelLoad(request, metadata=metadata)
    assert states(client)["1"][0] == "READY"
