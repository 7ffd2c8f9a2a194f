import json
import re
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest

from ddcat import __version__
from ddcat.bundle import Bundle
from ddcat.engines import Outputs
from ddcat_serve.inference.served_model import ServedModel
from tests.serve.payloads import IMAGE, INFER, VALUES, body_of, tensor_of


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (2, 9, 11, 3)).astype(np.uint8)


@pytest.mark.parametrize("nested", [False, True])
def test_tensors_go_in_and_come_out(
    client: httpx.Client, bundle: Bundle, oracle: Callable, images: np.ndarray, nested: bool
) -> None:
    body = {"id": "a 1", **body_of(images, images.tolist() if nested else None)}
    response = client.post(INFER, json=body)
    assert response.status_code == 200, response.text
    answer = response.json()
    assert {key: answer[key] for key in ("model_name", "model_version", "id")} == {
        "model_name": "small",
        "model_version": "1",
        "id": "a 1",
    }
    labels, logits = oracle(images)
    assert [output["name"] for output in answer["outputs"]] == ["labels", "logits"]
    np.testing.assert_array_equal(tensor_of(answer["outputs"][0]), labels)
    np.testing.assert_allclose(tensor_of(answer["outputs"][1]), logits, rtol=1e-6)
    assert response.headers["x-ddcat-bundle"] == bundle.digest


def test_outputs_are_those_asked_for(client: httpx.Client, images: np.ndarray) -> None:
    for names in (["labels"], ["logits", "labels"]):
        answer = client.post(INFER, json={**body_of(images), "outputs": [{"name": name} for name in names]}).json()
        assert [output["name"] for output in answer["outputs"]] == names
        assert "id" not in answer


def test_servers_and_models_say_what_they_are(client: httpx.Client, bundle: Bundle) -> None:
    server = client.get("/v2").json()
    assert (server["name"], server["version"], server["extensions"]) == (
        "ddcat",
        __version__,
        ["binary_tensor_data", "model_configuration", "statistics"],
    )
    assert server["parameters"]["settings"]["max_bytes"] == 65536
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json() == {"ready": True}
    assert client.get("/v2/models/small/ready").json() == {"name": "small", "ready": True}
    assert client.get("/v2/models/small/versions/1/ready").status_code == 200
    answer = client.get("/v2/models/small").json()
    assert answer == client.get("/v2/models/small/versions/1").json()
    assert answer["inputs"] == [{"name": "image", "datatype": "UINT8", "shape": [-1, -1, -1, 3]}]
    assert answer["outputs"] == [
        {"name": "labels", "datatype": "UINT8", "shape": [-1, -1, -1]},
        {"name": "logits", "datatype": "FP32", "shape": [-1, 4, -1, -1]},
    ]
    assert answer["parameters"]["bundle"] == bundle.digest
    assert answer["parameters"]["trust"] == bundle.trust
    assert (answer["parameters"]["passport"], answer["parameters"]["passport_known"][:5]) == (None, "none:")
    assert answer["parameters"]["classes"][1] == {"name": "red", "colour": [200, 10, 20]}
    assert answer["parameters"]["preprocessing"]["colour"] == "RGB"
    assert answer["parameters"]["engine"]["provider"] == "CPUExecutionProvider"


BAD: dict[str, tuple[Any, int, str]] = {
    "cut data": (body_of(IMAGE, VALUES[:-1]), 400, "191 values.* takes 192"),
    "other nesting": (body_of(IMAGE, np.zeros((8, 1, 8, 3), int).tolist()), 400, "nested as its shape"),
    "empty data": (body_of(IMAGE, []), 400, "0 values"),
    "float": (body_of(IMAGE, [0.5, *VALUES[1:]]), 400, "holds 0.5; UINT8 takes integers in 0..255"),
    "ragged within": (body_of(IMAGE, [[[*([[7, 7, 7]] * 7), [7, 7]]] * 8]), 400, "nested as its shape"),
    "nested lists and numbers": (body_of(IMAGE, [[[7] * 8] * 8]), 400, "nested as its shape"),
    "long string": (body_of(IMAGE, ["7" * 9999, *VALUES[1:]]), 400, 'holds "7{10,99}.*; UINT8 takes'),
    "object": (body_of(IMAGE, [{}, *VALUES[1:]]), 400, "holds {}; UINT8 takes"),
    "too large": (body_of(IMAGE, [256, *VALUES[1:]]), 400, "holds 256"),
    "huge integer": (body_of(IMAGE, [10**30, *VALUES[1:]]), 400, "holds 10{30};"),
    "dtype": (body_of(IMAGE, datatype="FP32"), 400, "UINT8"),
    "rank": (body_of(IMAGE, shape=[8, 8, 3]), 400, r"\[N, H, W, 3\]"),
    "channels": (body_of(IMAGE, shape=[1, 8, 6, 4]), 400, r"\[N, H, W, 3\]"),
    "planes first": (body_of(IMAGE, shape=[1, 3, 8, 8]), 400, r"\[N, H, W, 3\]"),
    "zero": (body_of(IMAGE, shape=[0, 8, 8, 3]), 400, "inputs.0.shape.0"),
    "negative size": (body_of(IMAGE, shape=[-1, 8, 8, 3]), 400, "inputs.0.shape.0"),
    "fractional size": (body_of(IMAGE, shape=[1.5, 8, 8, 3]), 400, "inputs.0.shape.0"),
    "too small": (body_of(np.zeros((1, 7, 8, 3), np.uint8)), 400, "Image is 8 x 7; this model needs at least 8 x 8"),
    "too many images": (body_of(np.zeros((5, 8, 8, 3), np.uint8)), 400, "batches of 1 to 4"),
    "too many pixels": (body_of(IMAGE, shape=[10**9, 10**9, 10**9, 3]), 413, "5000 pixels"),
    "wrong name": (body_of(IMAGE, name="x"), 400, "image"),
    "two inputs": ({"inputs": body_of(IMAGE)["inputs"] * 2}, 400, "image"),
    "no inputs": ({"inputs": []}, 400, "image"),
    "no data": ({"inputs": [{"name": "image", "shape": [1, 8, 8, 3], "datatype": "UINT8"}]}, 400, "inputs.0.data"),
    "unknown output": ({**body_of(IMAGE), "outputs": [{"name": "mask"}]}, 400, "labels, logits"),
    "output twice": ({**body_of(IMAGE), "outputs": [{"name": "labels"}] * 2}, 400, "twice"),
    "number as id": ({**body_of(IMAGE), "id": 7}, 400, "id"),
    "list": ([1, 2], 400, "object"),
    "null body": (None, 400, "object"),
}


@pytest.mark.parametrize("name", BAD)
def test_tensors_that_are_no_images_are_refused(client: httpx.Client, name: str) -> None:
    body, status, message = BAD[name]
    response = client.post(INFER, content=json.dumps(body))
    assert response.status_code == status, response.text
    assert list(response.json()) == ["error"]
    assert re.search(message, response.json()["error"]), response.text


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"NaN",
        b"[" * 50_000,
        b'{"inputs": ' + b"[" * 50_000,
        json.dumps(body_of(IMAGE)).encode()[:-5],
        json.dumps(body_of(IMAGE)).encode().replace(b"[7,", b"[1" + b"0" * 4200 + b","),
        json.dumps(body_of(IMAGE)).encode().replace(b"[7,", b"[1" + b"0" * 5000 + b","),
        json.dumps(body_of(IMAGE)).encode().replace(b"[1, 8,", b"[1" + b"0" * 4200 + b", 8,"),
        json.dumps(body_of(IMAGE)).encode().replace(b"[1, 8,", b"[1" + b"0" * 5000 + b", 8,"),
        json.dumps(body_of(IMAGE, [float("nan"), *VALUES[1:]])).encode(),
        json.dumps(body_of(IMAGE, [float("inf"), *VALUES[1:]])).encode(),
    ],
)
def test_bodies_that_are_no_request_are_refused(client: httpx.Client, body: bytes) -> None:
    response = client.post(INFER, content=body)
    assert response.status_code in (400, 413)
    assert list(response.json()) == ["error"]


def binary(image: np.ndarray, body: bytes | None = None, **changes: Any) -> tuple[bytes, str]:
    content = image.tobytes() if body is None else body
    request = body_of(image)
    tensor = request["inputs"][0]
    del tensor["data"]
    tensor["parameters"] = {"binary_data_size": len(content)}
    text = json.dumps(request | changes).encode()
    return text + content, str(len(text))


def test_binary_tensors_both_ways(client: httpx.Client, oracle: Callable, images: np.ndarray) -> None:
    body, length = binary(images, outputs=[{"name": "logits"}, {"name": "labels", "parameters": {"binary_data": True}}])
    response = client.post(INFER, content=body, headers={"Inference-Header-Content-Length": length})
    assert response.status_code == 200, response.text
    size = int(response.headers["inference-header-content-length"])
    answer, rest = json.loads(response.content[:size]), response.content[size:]
    logits, labels = answer["outputs"]
    np.testing.assert_allclose(tensor_of(logits), oracle(images)[1], rtol=1e-6)
    assert labels["parameters"] == {"binary_data_size": len(rest)}
    assert "data" not in labels
    np.testing.assert_array_equal(np.frombuffer(rest, np.uint8).reshape(labels["shape"]), oracle(images)[0])


def test_all_outputs_may_be_binary(client: httpx.Client, oracle: Callable, images: np.ndarray) -> None:
    response = client.post(INFER, json=body_of(images) | {"parameters": {"binary_data_output": True}})
    size = int(response.headers["inference-header-content-length"])
    labels, logits = oracle(images)
    assert response.content[size:] == labels.tobytes() + logits.tobytes()


@pytest.mark.parametrize(
    ("content", "length", "message"),
    [
        (binary(IMAGE, IMAGE.tobytes()[:-1])[0], None, "191 values"),
        (binary(IMAGE)[0] + b"x", None, "binary_data_size of 192, and 193 bytes follow"),
        (binary(IMAGE)[0][:-1], None, "binary_data_size of 192, and 191 bytes follow"),
        (binary(IMAGE)[0], "999999", "at most"),
        (binary(IMAGE)[0], "-1", "bytes of JSON"),
        (binary(IMAGE)[0], "0", "bytes of JSON"),
        (json.dumps(body_of(IMAGE)).encode() + b"xy", str(len(json.dumps(body_of(IMAGE)))), "2 bytes follow the JSON"),
        (json.dumps(body_of(IMAGE, parameters={"binary_data_size": 0})).encode(), None, "both data and a binary_data_size"),
    ],
)
def test_truncated_and_surplus_bytes_are_refused(
    client: httpx.Client, content: bytes, length: str | None, message: str
) -> None:
    own = str(content.index(b"}]}") + 3)
    response = client.post(INFER, content=content, headers={"Inference-Header-Content-Length": length or own})
    assert response.status_code == 400
    assert message in response.json()["error"]


@pytest.mark.parametrize("timeout", [-1, 1e12, "soon", True])
def test_invalid_timeouts_are_refused(client: httpx.Client, timeout: Any) -> None:
    response = client.post(INFER, json=body_of(IMAGE) | {"parameters": {"timeout": timeout}})
    assert response.status_code == 400
    assert "microseconds" in response.json()["error"]
    assert client.post(INFER, json=body_of(IMAGE) | {"parameters": {"timeout": 5_000_000}}).status_code == 200


def test_logits_that_are_not_finite_are_no_json(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    async def infer(self: ServedModel, images: np.ndarray, **_: Any) -> Outputs:
        return Outputs(np.zeros(images.shape[:3], np.uint8), np.full((1, 4, 8, 8), np.nan, np.float32), None)

    monkeypatch.setattr(ServedModel, "infer", infer)
    tensor = {"name": "image", "datatype": "UINT8", "shape": [1, 8, 8, 3], "data": [0] * 192}
    response = client.post("/v2/models/small/infer", json={"inputs": [tensor], "outputs": [{"name": "labels"}]})
    assert response.status_code == 200
    response = client.post("/v2/models/small/infer", json={"inputs": [tensor]})
    assert (response.status_code, response.headers["content-type"]) == (500, "application/json")
    assert set(response.json()) == {"error"}
