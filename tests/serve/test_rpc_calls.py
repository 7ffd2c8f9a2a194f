"""What a gRPC call passes before it is answered, against a running server: key, rate, bounds, and the trace that it leaves."""

import importlib
import json
import logging
import re
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import httpx
import numpy as np
import pytest
from tritonclient.grpc import service_pb2 as pb

from tests.bundles import small_bundle
from tests.serve.processes import free_port, server

KEY = "a long secret"
METADATA = (("authorization", f"Bearer {KEY}"),)
SERVICE = "/inference.GRPCInferenceService/"


class Running(NamedTuple):
    channel: grpc.Channel
    http: httpx.Client
    log: Callable[[], list[dict[str, Any]]]

    def call(self, method: str, message: bytes = b"", metadata: Any = METADATA) -> tuple[str, str]:
        """The name of the status, and the details of an error."""
        return ended(self.channel.unary_unary(method).future(message, timeout=60, metadata=metadata))

    def unfinished(self, method: str, metadata: Any = METADATA) -> Any:
        """A call whose message does not come."""
        return self.channel.stream_unary(method).future(silence(), timeout=60, metadata=metadata)

    def requests(self, route: str) -> Counter[str]:
        """Requests of a route, by status."""
        lines = self.http.get("/metrics").text.splitlines()
        found = Counter[str]()
        for line in lines:
            if line.startswith(f'ddcat_requests_total{{method="gRPC",route="{route}",'):
                found[line.split('status="')[1].split('"')[0]] += int(float(line.split()[-1]))
        return found


def silence() -> Iterator[bytes]:
    time.sleep(60)
    yield b""


def ended(call: Any) -> tuple[str, str]:
    error = call.exception()
    return ("OK", "") if error is None else (error.code().name, error.details())


def infer(images: np.ndarray | None = None, **changes: Any) -> bytes:
    images = np.zeros((1, 8, 8, 3), np.uint8) if images is None else images
    message = pb.ModelInferRequest(**{"model_name": "small", "raw_input_contents": [images.tobytes()], **changes})
    message.inputs.add(name="image", datatype="UINT8", shape=images.shape)
    content: bytes = message.SerializeToString()
    return content


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    bundle = small_bundle(tmp_path_factory.mktemp("calls") / "small.bundle")
    port = free_port()
    options = ("--grpc-port", port, "--api-key", KEY, "--body-timeout", 2, "--max-bytes", 2**20)
    with (
        server(bundle.path, *options) as (process, address),
        grpc.insecure_channel(f"127.0.0.1:{port}") as channel,
        httpx.Client(base_url=address, headers={"Authorization": f"Bearer {KEY}"}) as client,
    ):

        def log() -> list[dict[str, Any]]:
            assert process.stderr is not None
            process.stderr.seek(0)
            return [json.loads(line) for line in process.stderr.read().splitlines()]

        yield Running(channel, client, log)


def test_the_key_is_asked_for_before_the_message_is_read(running: Running) -> None:
    for method in ("ModelInfer", "ModelReady", "ServerReflectionInfo", "Nothing"):
        status, text = ended(running.unfinished(SERVICE + method, ()))
        assert (status, "API key" in text) == ("UNAUTHENTICATED", True)


@pytest.mark.parametrize("metadata", [METADATA * 2, (*METADATA, ("authorization", "Bearer x")), (("authorization", KEY),)])
def test_one_key_is_taken_as_over_http(running: Running, metadata: Any) -> None:
    assert running.call(SERVICE + "ModelReady", metadata=metadata)[0] == "UNAUTHENTICATED"


def test_a_message_that_does_not_come_ends(running: Running) -> None:
    status, text = ended(running.unfinished(SERVICE + "ModelInfer"))
    assert status == "DEADLINE_EXCEEDED"
    assert re.fullmatch(r"the message did not arrive within (2|1\.\d+) s", text)  # of the time some may have passed before
    status, _ = ended(running.unfinished("/grpc.health.v1.Health/Check", ()))
    assert status == "DEADLINE_EXCEEDED"


def test_messages_wait_for_those_that_are_in_hand(running: Running) -> None:
    held = [running.unfinished(SERVICE + "ModelInfer") for _ in range(8)]
    assert running.call(SERVICE + "ServerLive", metadata=()) == ("OK", "")
    assert running.call("/grpc.health.v1.Health/Check", metadata=()) == ("OK", "")
    assert running.call(SERVICE + "ModelInfer", infer()) == ("OK", "")  # when one of them has ended
    assert {ended(call)[0] for call in held} == {"DEADLINE_EXCEEDED"}


def test_a_burst_is_answered_or_refused_and_never_cut(running: Running) -> None:
    message = infer()
    with ThreadPoolExecutor(1) as pool:
        calls = pool.submit(
            lambda: [
                running.channel.unary_unary(SERVICE + "ModelInfer").future(message, timeout=60, metadata=METADATA)
                for _ in range(400)
            ]
        ).result()
    assert {ended(call)[0] for call in calls} <= {"OK", "RESOURCE_EXHAUSTED"}


@pytest.mark.parametrize(
    ("method", "text"),
    [
        ("RepositoryModelLoad", "models are neither loaded nor unloaded while the server runs"),
        ("SystemSharedMemoryRegister", "no shared memory"),
        ("CudaSharedMemoryStatus", "no shared memory"),
        ("TraceSetting", "OpenTelemetry"),
        ("Nothing", "this server has no Nothing: reflection lists what there is"),
        ("x" * 5000, "this server has no xxx"),
        ("", "this server has no /inference.GRPCInferenceService/: reflection lists what there is"),
    ],
)
def test_methods_that_are_not_there_are_unimplemented(running: Running, method: str, text: str) -> None:
    before = running.requests("none")["UNIMPLEMENTED"]
    status, details = running.call(SERVICE + method, b"\xff")
    assert (status, text in details, len(details) < 300) == ("UNIMPLEMENTED", True, True)
    assert running.requests("none")["UNIMPLEMENTED"] == before + 1
    assert running.call("/another.Service/" + method)[0] == "UNIMPLEMENTED"
    assert running.call(SERVICE + method, metadata=())[0] == "UNAUTHENTICATED"


@pytest.mark.parametrize("method", ["ModelInfer", "ModelReady", "ModelMetadata", "ModelConfig", "RepositoryIndex"])
def test_what_is_no_message_is_the_clients_fault(running: Running, method: str) -> None:
    assert running.call(SERVICE + method, b"\xff" * 20)[0] == "INVALID_ARGUMENT"
    assert running.call(SERVICE + method, bytes(2**17))[0] == "INVALID_ARGUMENT"


def test_texts_of_clients_are_not_repeated_at_length(running: Running) -> None:
    for message in (infer(model_name="x" * 60_000), infer(model_version="y" * 60_000)):
        status, details = running.call(SERVICE + "ModelInfer", message)
        assert (status, len(details) < 300) == ("NOT_FOUND", True)


def test_each_call_leaves_a_line_and_is_counted(running: Running) -> None:
    before = running.requests("ModelInfer")
    named = (*METADATA, ("x-request-id", "mine-1"))
    assert running.call(SERVICE + "ModelInfer", infer(), named) == ("OK", "")
    assert running.call(SERVICE + "ModelInfer", infer(model_name="other"), named)[0] == "NOT_FOUND"
    assert running.call(SERVICE + "ModelInfer", infer(), (("x-request-id", "mine-1"),))[0] == "UNAUTHENTICATED"
    assert running.requests("ModelInfer") - before == {"OK": 1, "NOT_FOUND": 1, "UNAUTHENTICATED": 1}
    lines = [line for line in running.log() if line.get("request_id") == "mine-1"]
    assert [line.pop("status") for line in lines] == ["OK", "NOT_FOUND", "UNAUTHENTICATED"]
    for line in lines:
        assert line.pop("ms") >= 0
        assert {key: value for key, value in line.items() if key != "time"} == {
            "level": "info", "logger": "ddcat_serve.access", "request_id": "mine-1", "client": "127.0.0.1",
            "method": "gRPC", "path": SERVICE + "ModelInfer",
        }  # fmt: skip
    text = running.http.get("/metrics").text
    assert 'ddcat_request_seconds_count{route="ModelInfer"}' in text


def test_a_probe_names_a_service_or_none(running: Running) -> None:
    status, text = running.call("/grpc.health.v1.Health/Check", b"\x0a\x07another", ())
    assert (status, "no such service" in text) == ("NOT_FOUND", True)


def test_nothing_above_info_is_logged_for_what_clients_do(running: Running) -> None:
    running.call(SERVICE + "Nothing", b"\xff")
    running.call(SERVICE + "ModelInfer", b"\xff")
    assert {line["logger"] for line in running.log() if line["level"] != "info"} <= {"ddcat_serve.inference.warm_up"}


def test_grpc_logs_no_client_that_leaves_while_it_is_answered() -> None:
    importlib.import_module("ddcat_serve.rpc.calls")
    logger = logging.getLogger("grpc._cython.cygrpc")
    for error, logged in ((grpc.aio.InternalError("batch"), False), (ValueError("ours"), True)):
        record = logger.makeRecord(logger.name, logging.ERROR, "", 0, "", (), (type(error), error, None))
        assert bool(logger.filter(record)) is logged


@pytest.mark.parametrize(
    "ends",
    ["max_connection_idle", *(pytest.param(n, marks=pytest.mark.slow) for n in ("max_connection_age", "keepalive_time"))],
)
def test_a_connection_whose_client_does_nothing_ends(tmp_path: Path, ends: str) -> None:
    bundle = small_bundle(tmp_path / "small.bundle")
    soon = f'found["grpc.{ends}_ms"] = found["grpc.max_connection_age_grace_ms"] = found["grpc.http2.ping_timeout_ms"] = 500'
    sooner = f"from ddcat_serve.rpc.service import _CONNECTIONS as found\nassert 'grpc.{ends}_ms' in found\n{soon}"
    port = free_port()
    with (
        server(bundle.path, "--grpc-port", port, before=sooner),
        socket.create_connection(("127.0.0.1", port), timeout=20) as connection,
    ):
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0")
        while connection.recv(2**16):
            pass
