"""What no client library sends over gRPC: numbers instead of bytes, and requests that are wrong; and an engine that fails."""

import asyncio
import logging
import re
from collections.abc import Callable
from typing import Any

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc as stubs

from ddcat_serve.errors import ServeError
from ddcat_serve.http.app import create_app
from ddcat_serve.inference.model_registry import Models
from ddcat_serve.rpc.service import serve_grpc
from ddcat_serve.settings import Settings
from tests.serve.processes import free_port

SHAPE = (1, 9, 11, 3)
IMAGES = np.random.default_rng(3).integers(0, 256, SHAPE).astype(np.uint8)
COUNT = IMAGES.size


def request(*, names: tuple[str, ...] = ("image",), raw: tuple[bytes, ...] = (), numbers: list[int] | None = None) -> Any:
    made = pb.ModelInferRequest(model_name="small", raw_input_contents=raw)
    for name in names:
        tensor = made.inputs.add(name=name, datatype="UINT8", shape=SHAPE)
        tensor.contents.uint_contents.extend(numbers or [])
    return made


def asked(models: Models, message: Any) -> Any:
    """The answer of a server in this process, or the error that came instead of it."""

    async def ask() -> Any:
        address = f"127.0.0.1:{free_port()}"
        context = create_app(models, Settings()).state.server_state
        async with serve_grpc(context, address), grpc.aio.insecure_channel(address) as channel:
            try:
                return await stubs.GRPCInferenceServiceStub(channel).ModelInfer(message, timeout=10)
            except grpc.aio.AioRpcError as error:
                return error

    return asyncio.run(ask())


def test_an_image_may_come_as_numbers(models: Models, oracle: Callable) -> None:
    answer = asked(models, request(numbers=IMAGES.ravel().tolist()))
    assert answer.outputs[0].name == "labels"
    found = np.frombuffer(answer.raw_output_contents[0], np.uint8).reshape(answer.outputs[0].shape)
    np.testing.assert_array_equal(found, oracle(IMAGES)[0])


@pytest.mark.parametrize(
    ("message", "told"),
    [
        (request(names=("picture",), raw=(IMAGES.tobytes(),)), "inputs are ['picture']; the model has one, image"),
        (request(names=("image", "image"), raw=(IMAGES.tobytes(),)), "inputs are ['image', 'image']; the model has one"),
        (request(names=()), "inputs are []; the model has one, image"),
        (request(raw=(IMAGES.tobytes(),), numbers=[1] * COUNT), "image has both raw contents and numbers"),
        (request(raw=(IMAGES.tobytes(), b"")), "2 raw contents follow, for one input"),
        (request(raw=(IMAGES.tobytes()[1:],)), f"has {COUNT - 1} values; {list(SHAPE)} takes {COUNT}"),
        (request(numbers=[1] * (COUNT + 1)), f"has {COUNT + 1} values; {list(SHAPE)} takes {COUNT}"),
        (request(), f"has 0 values; {list(SHAPE)} takes {COUNT}"),
        (request(numbers=[0] * (COUNT - 1) + [256]), "has values above 255; UINT8 takes 0..255"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_input_that_is_wrong_is_the_clients_fault_and_named(models: Models, message: Any, told: str) -> None:
    answer = asked(models, message)
    assert answer.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert told in answer.details()


def test_an_engine_that_fails_is_told_to_the_log_and_not_to_the_client(
    models: Models, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(*_: Any, **__: Any) -> Any:
        raise ZeroDivisionError("a secret of this machine")

    monkeypatch.setattr("ddcat_serve.inference.served_model.ServedModel.infer", broken)
    with caplog.at_level(logging.ERROR):
        answer = asked(models, request(raw=(IMAGES.tobytes(),)))
    assert answer.code() == grpc.StatusCode.INTERNAL
    assert "secret" not in answer.details()
    assert re.search(r"gRPC ModelInfer, request \w{32}: a secret of this machine", caplog.text)


def test_an_address_that_cannot_be_listened_at_is_one_line(models: Models) -> None:
    async def start() -> None:
        async with serve_grpc(create_app(models, Settings()).state.server_state, "192.0.2.1:1"):
            raise AssertionError("it listens")

    with pytest.raises(
        ServeError, match=r"gRPC cannot listen at 192\.0\.2\.1:1: choose another port with --grpc-port"
    ) as caught:
        asyncio.run(start())
    assert "\n" not in str(caught.value)
