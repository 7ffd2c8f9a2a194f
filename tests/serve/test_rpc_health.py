"""Health and reflection by grpcio's own clients, as Kubernetes, Envoy and grpcurl ask for them."""

import signal
from collections.abc import Iterator
from subprocess import Popen

import grpc
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from tests.bundles import small_bundle
from tests.serve.processes import free_port, server

Status = health_pb2.HealthCheckResponse


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[grpc.Channel, Popen[str]]]:
    bundle = small_bundle(tmp_path_factory.mktemp("health") / "small.bundle")
    port = free_port()
    with (
        server(bundle.path, "--grpc-port", port, "--rate-limit", "100/minute", "--shutdown-delay", 2) as (process, _),
        grpc.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        yield channel, process


def test_reflection_tells_what_there_is(running: tuple[grpc.Channel, Popen[str]]) -> None:
    channel, _ = running
    database = ProtoReflectionDescriptorDatabase(channel)
    assert sorted(database.get_services()) == [
        "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection", "inference.GRPCInferenceService",
    ]  # fmt: skip
    service = DescriptorPool(database).FindServiceByName("inference.GRPCInferenceService")
    method = service.FindMethodByName("ServerMetadata")  # called by what reflection told alone, as grpcurl does
    call = channel.unary_unary(
        f"/{service.full_name}/{method.name}",
        request_serializer=lambda request: request.SerializeToString(),
        response_deserializer=GetMessageClass(method.output_type).FromString,
    )
    assert call(GetMessageClass(method.input_type)(), timeout=30).name == "ddcat"


def test_health_is_told_until_the_server_stops(running: tuple[grpc.Channel, Popen[str]]) -> None:
    channel, process = running
    health = health_pb2_grpc.HealthStub(channel)
    for service in ("", "inference.GRPCInferenceService"):
        assert health.Check(health_pb2.HealthCheckRequest(service=service)).status == Status.SERVING
    with pytest.raises(grpc.RpcError) as caught:
        health.Check(health_pb2.HealthCheckRequest(service="another"))
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND
    unknown = health.Watch(health_pb2.HealthCheckRequest(service="another"), timeout=60)
    assert next(unknown).status == Status.SERVICE_UNKNOWN
    unknown.cancel()
    watched = health.Watch(health_pb2.HealthCheckRequest(), timeout=60)
    assert next(watched).status == Status.SERVING
    process.send_signal(signal.SIGTERM)
    assert next(watched).status == Status.NOT_SERVING
    assert list(watched) == []  # it ends with the server, which does not wait for it
    assert process.wait(25) == 0  # less than the drain of 30 s
