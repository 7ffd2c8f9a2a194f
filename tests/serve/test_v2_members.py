"""What of a request is taken, what is refused by its name, and how much of it may be large."""

import json
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest

from ddcat_serve.http.app import create_app
from ddcat_serve.inference.model_registry import Models
from ddcat_serve.settings import Settings
from tests.serve.payloads import IMAGE, INFER, VALUES, body_of, tensor_of


def kserve_body(binary: bool) -> tuple[bytes, dict[str, str]]:
    """As KServe's own client writes it, and with whatever else a serialiser may write."""
    tensor: dict[str, Any] = {"name": "image", "shape": list(IMAGE.shape), "datatype": "UINT8", "more": [{"a": [1]}]}
    tensor |= {"parameters": {"binary_data_size": IMAGE.size}, "data": None} if binary else {"data": VALUES, "parameters": None}
    body = {"id": None, "model_name": "small", "model_version": None, "parameters": {"timeout": None}, "inputs": [tensor]}
    body |= {"outputs": [{"name": "labels", "parameters": None, "more": {}}], "and": {"so": "on"}}
    text = json.dumps(body).encode()
    return (text + IMAGE.tobytes(), {"Inference-Header-Content-Length": str(len(text))}) if binary else (text, {})


@pytest.mark.parametrize("binary", [False, True])
def test_unknown_and_null_members_are_ignored(client: httpx.Client, oracle: Callable, binary: bool) -> None:
    content, headers = kserve_body(binary)
    response = client.post(INFER, content=content, headers=headers)
    assert response.status_code == 200, response.text
    np.testing.assert_array_equal(tensor_of(response.json()["outputs"][0]), oracle(IMAGE)[0])
    assert "id" not in response.json()


@pytest.mark.parametrize("outputs", [None, []])
def test_no_output_is_all_of_them(client: httpx.Client, outputs: Any) -> None:
    answer = client.post(INFER, json=body_of(IMAGE) | {"outputs": outputs, "parameters": None}).json()
    assert [output["name"] for output in answer["outputs"]] == ["labels", "logits"]


@pytest.mark.parametrize("timeout", [0, 0.0, None])
def test_no_timeout_is_that_of_the_server(client: httpx.Client, timeout: Any) -> None:
    assert client.post(INFER, json=body_of(IMAGE) | {"parameters": {"timeout": timeout}}).status_code == 200


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"shared_memory_region": "r"}, "'shared_memory_region': no shared memory is written"),
        ({"shared_memory_byte_size": 4}, "'shared_memory_byte_size': no shared memory is written"),
        ({"classification": 3}, "'classification' (class_count): leave it out"),
        ({"top": True}, "'top', which this server does not know"),
        ({"binary_data": 1}, "binary_data is 1; expected true or false"),
    ],
)
def test_parameters_that_would_change_an_output_are_refused(
    client: httpx.Client, parameters: dict[str, Any], message: str
) -> None:
    response = client.post(INFER, json=body_of(IMAGE) | {"outputs": [{"name": "labels", "parameters": parameters}]})
    assert response.status_code == 400
    assert message in response.json()["error"]


def test_an_input_in_shared_memory_is_refused_by_this_name(client: httpx.Client) -> None:
    body = body_of(IMAGE, parameters={"shared_memory_region": "r", "shared_memory_byte_size": 192})
    del body["inputs"][0]["data"]
    response = client.post(INFER, json=body)
    assert (response.status_code, "no shared memory is read" in response.json()["error"]) == (400, True)


def test_a_flag_is_true_or_false(client: httpx.Client) -> None:
    response = client.post(INFER, json=body_of(IMAGE) | {"parameters": {"binary_data_output": "yes"}})
    assert (response.status_code, response.json()["error"]) == (400, "binary_data_output is 'yes'; expected true or false")


LONG = "x" * 40_000


@pytest.mark.parametrize(
    "body",
    [
        body_of(IMAGE, shape=[1] * 20_000),
        body_of(IMAGE, shape=[10**4000, 8, 8, 3]),
        body_of(IMAGE, datatype=LONG),
        body_of(IMAGE, name=LONG),
        body_of(IMAGE, [LONG]),
        body_of(IMAGE, ["1" * 40_000]),
        body_of(IMAGE) | {"outputs": [{"name": LONG}]},
        body_of(IMAGE) | {"outputs": [{"name": "labels", "parameters": {LONG: 1}}]},
        body_of(IMAGE) | {"parameters": {"timeout": LONG}},
        body_of(IMAGE, parameters={"binary_data_size": LONG}, data=None),
        body_of(IMAGE) | {LONG: 1, "id": 7},
        {"inputs": [LONG]},
    ],
)
def test_long_values_of_clients_are_cut_in_messages(client: httpx.Client, body: Any) -> None:
    response = client.post(INFER, json=body)
    assert response.status_code in (400, 413)
    assert len(response.content) < 400


def test_long_names_in_paths_and_headers_are_cut_in_messages(client: httpx.Client) -> None:
    for path in (f"/v2/models/{LONG}", f"/v2/models/small/versions/{LONG}/ready", f"/v2/models/{LONG}/stats"):
        response = client.get(path)
        assert (response.status_code, len(response.content) < 300) == (404, True)
    response = client.post(INFER, content=b"{}", headers={"Inference-Header-Content-Length": LONG})
    assert (response.status_code, len(response.content) < 300) == (400, True)


def test_a_request_beside_its_data_is_small(models: Models, client_of: Callable) -> None:
    large = client_of(create_app(models, Settings()))
    for more in ({"id": "x" * 70_000}, {"parameters": {str(n): n for n in range(10_000)}}, {"outputs": [{"name": "x"}] * 9000}):
        response = large.post(INFER, json=body_of(IMAGE) | more)
        assert (response.status_code, "beside the data of its tensor" in response.json()["error"]) == (413, True)


def test_a_response_too_long_for_json_is_available_as_bytes(
    models: Models, client_of: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ddcat_serve.http.infer_json._MIN_LIMIT", 1000)
    small = client_of(create_app(models, Settings(max_pixels=64)))
    response = small.post(INFER, json=body_of(IMAGE))
    assert (response.status_code, "ask for it with binary_data" in response.json()["error"]) == (400, True)
    assert small.post(INFER, json=body_of(IMAGE) | {"outputs": [{"name": "labels"}]}).status_code == 200
    assert small.post(INFER, json=body_of(IMAGE) | {"parameters": {"binary_data_output": True}}).status_code == 200


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b'{"id":"\\ud800"}', "the body is not JSON: "),
        (b'{"id":"\\ud83d\\ude00\\uDC00","inputs":[]}', "the body is not JSON: "),
        (b'{"id":"a\xff","inputs":[{"name":"image"}]}', "byte 8 of the JSON is not UTF-8; send UTF-8"),
        ('{"id":"\ud800","inputs":[{}]}'.encode(errors="surrogatepass"), "byte 7 of the JSON is not UTF-8; send UTF-8"),
        (b'{"id":"\\ud83d\\ude00abcde', "the body is not JSON: Input data was truncated"),
        (b'{"id":"\\ud8"}', "the body is not JSON: invalid character in unicode escape (byte 12)"),
    ],
)  # fmt: skip
def test_text_that_is_no_unicode_is_refused_for_that(client: httpx.Client, text: bytes, message: str) -> None:
    response = client.post(INFER, content=text)
    assert response.status_code == 400
    assert response.json()["error"].startswith(message)


def test_a_pair_of_surrogates_is_a_character(client: httpx.Client) -> None:
    text = json.dumps(body_of(IMAGE) | {"id": "\U0001f600"})
    assert "\\ud83d\\ude00" in text
    assert client.post(INFER, content=text).json()["id"] == "\U0001f600"
