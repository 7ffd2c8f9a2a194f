"""Tensors of 16 bits: the answer of the file, by every way into the server; a bundle of 8 bits refuses them."""

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from tritonclient.grpc import service_pb2 as pb

from ddcat_serve.http.infer_json import LENGTH
from ddcat_serve.inference.model_registry import Models, load_models
from ddcat_serve.settings import Settings
from tests.banded import VALUES, bands_of, encoded
from tests.serve.payloads import refused
from tests.serve.test_bands import SIZE, banded
from tests.serve.test_rpc_service import asked

PIXELS = bands_of(4, size=SIZE)[0]
SHAPE = [1, *PIXELS.shape]
TENSOR = {"name": "image", "datatype": "UINT16", "shape": SHAPE}
ROUTE = "/v2/models/small/infer"


def binary(pixels: npt.NDArray[np.uint16], **changed: Any) -> tuple[bytes, dict[str, str]]:
    content = pixels.astype("<u2").tobytes()
    tensor = TENSOR | {"parameters": {"binary_data_size": len(content)}} | changed
    head = json.dumps({"inputs": [tensor], "outputs": [{"name": "labels"}]}).encode()
    return head + content, {LENGTH: str(len(head))}


def message(*, raw: bool) -> bytes:
    made = pb.ModelInferRequest(model_name="small", raw_input_contents=[PIXELS.astype("<u2").tobytes()] * raw)
    tensor = made.inputs.add(name="image", datatype="UINT16", shape=SHAPE)
    made.outputs.add(name="labels")
    if not raw:
        tensor.contents.uint_contents.extend(PIXELS.ravel().tolist())
    content: bytes = made.SerializeToString()
    return content


@pytest.fixture(params=[VALUES, None], ids=["of 16 bits", "of 8 bits"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return banded(tmp_path / "bundle", 4, values=request.param)[0].path


@pytest.fixture
def is_deep(request: pytest.FixtureRequest) -> bool:
    return "of 16 bits" in request.node.name


@pytest.fixture
def loaded(path: Path) -> Iterator[Models]:
    with load_models([path], settings=Settings(), threads=1) as models:
        yield models


def test_a_tensor_over_http(path: Path, is_deep: bool, serving: Callable[..., httpx.Client], tmp_path: Path) -> None:
    client = serving(path)
    content, headers = binary(PIXELS)
    answers = [
        client.post(ROUTE, json={"inputs": [TENSOR | {"data": data.tolist()}], "outputs": [{"name": "labels"}]})
        for data in (PIXELS[None], PIXELS.ravel())
    ]
    answers.append(client.post(ROUTE, content=content, headers=headers))
    if not is_deep:
        assert {refused(answer) for answer in answers} == {
            (400, "image has datatype 'UINT16'; the model takes UINT8: its bundle is of 8 bits")
        }
        return
    of_file = client.post("/v1/segment", content=encoded(tmp_path / "a.png", PIXELS).read_bytes())
    labels = np.asarray(Image.open(io.BytesIO(of_file.content)))
    assert len(np.unique(labels)) > 1
    for answer in answers:
        assert answer.status_code == 200, answer.text
        assert np.array_equal(np.reshape(answer.json()["outputs"][0]["data"], SIZE), labels)
    odd, headers = binary(PIXELS, parameters={"binary_data_size": 2 * PIXELS.size - 1})
    assert "bytes; " in refused(client.post(ROUTE, content=odd[:-1], headers=headers))[1]
    large = TENSOR | {"data": [65536, *PIXELS.ravel().tolist()[1:]]}
    message = refused(client.post(ROUTE, json={"inputs": [large]}))
    assert message == (400, "the data of image holds 65536; UINT16 takes integers in 0..65535")


@pytest.mark.parametrize("raw", [True, False])
def test_a_tensor_over_grpc(loaded: Models, is_deep: bool, raw: bool, tmp_path: Path) -> None:
    answer = asked(loaded, message(raw=raw))
    if not is_deep:
        assert "the model takes UINT8: its bundle is of 8 bits" in answer.details()
        return
    exact = (2 * 255 * (PIXELS.astype(int) - VALUES[0]) + 4095) // (2 * 4095)
    labels = banded(tmp_path / "again", 4)[1](exact.clip(0, 255).astype(np.uint8))
    assert np.array_equal(np.frombuffer(answer.raw_output_contents[0], np.uint8).reshape(SIZE), labels)
