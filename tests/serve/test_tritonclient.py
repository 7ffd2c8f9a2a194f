"""The clients of a real Triton, over HTTP and gRPC, as they would speak to one."""

import queue
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from tritonclient.utils import InferenceServerException

from tests.bundles import small_bundle
from tests.serve.processes import free_port, server

KEY = "a long secret"
IMAGES = np.random.default_rng(5).integers(0, 256, (2, 21, 30, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def addresses(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """Of HTTP and of gRPC."""
    bundle = small_bundle(tmp_path_factory.mktemp("triton") / "small.bundle")
    port = free_port()
    with server(bundle.path, "--grpc-port", port, "--api-key", KEY) as (_, address):
        yield address.removeprefix("http://"), f"127.0.0.1:{port}"


def key() -> dict[str, str]:
    """A new one each time: the HTTP client adds to it."""
    return {"authorization": f"Bearer {KEY}"}


def request(client: Any, binary: bool = True) -> tuple[list[Any], list[Any]]:
    image = client.InferInput("image", list(IMAGES.shape), "UINT8")
    if client is triton_http:
        image.set_data_from_numpy(IMAGES, binary_data=binary)
        return [image], [client.InferRequestedOutput(name, binary_data=binary) for name in ("labels", "logits")]
    image.set_data_from_numpy(IMAGES)
    return [image], [client.InferRequestedOutput(name) for name in ("labels", "logits")]


def check(result: Any, oracle: Callable) -> None:
    labels, logits = oracle(IMAGES)
    np.testing.assert_array_equal(result.as_numpy("labels"), labels)
    np.testing.assert_allclose(result.as_numpy("logits"), logits, rtol=1e-6)


@pytest.mark.parametrize("binary", [True, False])
def test_http(addresses: tuple[str, str], oracle: Callable, binary: bool) -> None:
    client = triton_http.InferenceServerClient(addresses[0])
    assert client.is_server_live(key())
    assert client.is_server_ready(key())
    assert client.is_model_ready("small", headers=key())
    assert client.is_model_ready("small", "1", headers=key())
    assert not client.is_model_ready("other", headers=key())
    assert "binary_tensor_data" in client.get_server_metadata(key())["extensions"]
    metadata = client.get_model_metadata("small", headers=key())
    assert metadata["inputs"] == [{"name": "image", "datatype": "UINT8", "shape": [-1, -1, -1, 3]}]
    inputs, outputs = request(triton_http, binary)
    result = client.infer("small", inputs, outputs=outputs, request_id="7", headers=key(), timeout=5_000_000)
    check(result, oracle)
    assert result.get_response()["id"] == "7"
    for model, version, message in (("other", "", "no model is named"), ("small", "9", "has no version")):
        with pytest.raises(InferenceServerException, match=message):
            client.infer(model, inputs, model_version=version, headers=key())
    with pytest.raises(InferenceServerException, match="API key"):
        client.infer("small", inputs)
    with pytest.raises(InferenceServerException, match="no output 'mask'"):
        client.infer("small", inputs, outputs=[triton_http.InferRequestedOutput("mask")], headers=key())


@pytest.mark.parametrize("kind", [triton_http, triton_grpc])
def test_beside_inference(addresses: tuple[str, str], kind: Any) -> None:
    as_json = {"as_json": True} if kind is triton_grpc else {}
    with kind.InferenceServerClient(addresses[kind is triton_grpc]) as client:
        config = client.get_model_config("small", headers=key(), **as_json)
        config = config.get("config", config)
        assert (config["name"], config["max_batch_size"]) == ("small", 4)
        assert list(map(int, config["input"][0]["dims"])) == [-1, -1, 3]
        listed = client.get_model_repository_index(key(), **as_json)
        [listed] = listed["models"] if as_json else listed
        assert (listed["name"], listed["version"], listed["state"]) == ("small", "1", "READY")
        for version in ("", "1"):
            [found] = client.get_inference_statistics("small", version, headers=key(), **as_json)["model_stats"]
            assert (found["name"], found["version"]) == ("small", "1")
        assert len(client.get_inference_statistics(headers=key(), **as_json)["model_stats"]) == 1
        assert not client.is_model_ready("small", "2", headers=key())
        assert not client.is_model_ready("other", headers=key())
        for refused in (client.load_model, client.unload_model):
            with pytest.raises(InferenceServerException, match="neither loaded nor unloaded") as caught:
                refused("small", headers=key())
            assert caught.value.status() in ("400", "StatusCode.UNIMPLEMENTED")
        check_refusals(client, kind)


def check_refusals(client: Any, kind: Any) -> None:
    """What would be answered with something else than it asks for."""
    inputs, _ = request(kind)
    shared = kind.InferRequestedOutput("labels")
    shared.set_shared_memory("region", IMAGES[..., 0].size)
    for output, message in ((shared, "shared_memory"), (kind.InferRequestedOutput("labels", class_count=3), "class_count")):
        with pytest.raises(InferenceServerException, match=message):
            client.infer("small", inputs, outputs=[output], headers=key())
    inputs[0].set_shared_memory("region", IMAGES.size)
    with pytest.raises(InferenceServerException, match="no shared memory is read"):
        client.infer("small", inputs, headers=key())


def test_grpc(addresses: tuple[str, str], oracle: Callable) -> None:
    with triton_grpc.InferenceServerClient(addresses[1]) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("small", headers=key())
        assert client.get_server_metadata(key()).name == "ddcat"
        metadata = client.get_model_metadata("small", headers=key())
        assert [(t.name, t.datatype, list(t.shape)) for t in metadata.outputs] == [
            ("labels", "UINT8", [-1, -1, -1]), ("logits", "FP32", [-1, 4, -1, -1]),
        ]  # fmt: skip
        inputs, outputs = request(triton_grpc)
        result = client.infer("small", inputs, outputs=outputs, request_id="7", headers=key())
        check(result, oracle)
        assert result.get_response().id == "7"
        for model, version, message in (("other", "", "no model is named"), ("small", "9", "has no version")):
            with pytest.raises(InferenceServerException, match=message) as caught:
                client.infer(model, inputs, model_version=version, headers=key())
            assert caught.value.status() == "StatusCode.NOT_FOUND"
        with pytest.raises(InferenceServerException, match="API key"):
            client.infer("small", inputs)
        wrong = triton_grpc.InferInput("image", [1, 8, 8, 4], "UINT8")
        wrong.set_data_from_numpy(np.zeros((1, 8, 8, 4), np.uint8))
        with pytest.raises(InferenceServerException, match=r"takes \[N, H, W, 3\]"):
            client.infer("small", [wrong], headers=key())
        small = triton_grpc.InferInput("image", [1, 4, 4, 3], "UINT8")
        small.set_data_from_numpy(np.zeros((1, 4, 4, 3), np.uint8))
        with pytest.raises(InferenceServerException, match="Image is 4 x 4; this model needs at least 8 x 8") as caught:
            client.infer("small", [small], headers=key())
        assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"


def test_grpc_in_a_stream(addresses: tuple[str, str], oracle: Callable) -> None:
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    inputs, outputs = request(triton_grpc)
    with triton_grpc.InferenceServerClient(addresses[1]) as client:
        client.start_stream(callback=lambda result, error: answers.put((result, error)), headers=key())
        for model in ("small", "other", "small"):
            client.async_stream_infer(model, inputs, outputs=outputs, request_id="7")
        found = [answers.get(timeout=30) for _ in range(3)]
        client.stop_stream()
    for result, error in found[::2]:
        assert error is None
        check(result, oracle)
        assert result.get_response().id == "7"
    assert "no model is named 'other'" in str(found[1][1])
