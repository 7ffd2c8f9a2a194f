"""A gRPC server in this process: an engine that fails, and an address that is taken."""

import asyncio
import logging
import re
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc as stubs

from ddcat_serve.errors import ServeError
from ddcat_serve.http.app import create_app
from ddcat_serve.inference.model_registry import Models
from ddcat_serve.rpc.service import serve_grpc
from ddcat_serve.settings import Settings
from tests.serve.processes import free_port
from tests.serve.test_rpc_messages import IMAGE, message


def asked(models: Models, content: bytes) -> Any:
    """The answer of a server in this process, or the error that came instead of it."""

    async def ask() -> Any:
        address = f"127.0.0.1:{free_port()}"
        context = create_app(models, Settings()).state.server_state
        async with serve_grpc(context, address), grpc.aio.insecure_channel(address) as channel:
            try:
                return await stubs.GRPCInferenceServiceStub(channel).ModelInfer(
                    pb.ModelInferRequest.FromString(content), timeout=10
                )
            except grpc.aio.AioRpcError as error:
                return error

    return asyncio.run(ask())


def test_an_engine_that_fails_is_told_to_the_log_and_not_to_the_client(
    models: Models, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(*_: Any, **__: Any) -> Any:
        raise ZeroDivisionError("a secret of this machine")

    monkeypatch.setattr("ddcat_serve.inference.served_model.ServedModel.infer", broken)
    with caplog.at_level(logging.ERROR):
        answer = asked(models, message(raw=IMAGE.tobytes()))
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
