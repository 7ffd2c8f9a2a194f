"""
The Open Inference Protocol, version 2, over gRPC, with health checks and reflection; runs in the server's event loop.

Services: inference.GRPCInferenceService, grpc.health.v1.Health and grpc.reflection.v1alpha.ServerReflection.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import grpc
from google.protobuf.json_format import ParseDict
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.reflection import aio as reflection
from tritonclient.grpc import service_pb2 as pb

from ddcat_serve.errors import RequestError, ServeError
from ddcat_serve.http import v2_metadata, v2_protocol
from ddcat_serve.http.repository_routes import repository_of
from ddcat_serve.http.server_state import ServerState
from ddcat_serve.http.v2_metadata import LOADING, model_config, model_statistics, repository_index
from ddcat_serve.inference.model_registry import find_model
from ddcat_serve.inference.served_model import ServedModel
from ddcat_serve.rpc.calls import Call, Calls, Method
from ddcat_serve.rpc.messages import infer_response, parameters_of, parse, parse_infer

__all__ = ["GrpcServer", "serve_grpc"]

_INFERENCE = "inference.GRPCInferenceService"
_HEALTH = "grpc.health.v1.Health"
_REFLECTION = "grpc.reflection.v1alpha.ServerReflection"
_WATCH_INTERVAL = 0.5  # seconds after which a watcher sees a change of health
_STREAMS, _WATCHERS, _REFLECTIONS = 16, 100, 4  # at once
_MEMORY = "no shared memory is read or written; send tensors in messages"
_REASONS = {
    "RepositoryModelLoad": LOADING,
    "RepositoryModelUnload": LOADING,
    **{f"{kind}SharedMemory{verb}": _MEMORY for kind in ("System", "Cuda") for verb in ("Status", "Register", "Unregister")},
    "TraceSetting": "tracing is set by OpenTelemetry's environment variables when the server starts",
    "LogSettings": "what is logged cannot be changed",
}
_SECOND = 1000  # ms
_CONNECTIONS = {
    "grpc.so_reuseport": 0,
    "grpc.max_concurrent_streams": 100,  # per client; more wait on its side
    "grpc.http.overload_protection": 0,  # it would reset calls of an honest client's burst at random
    "grpc.server.max_pending_requests": 10_000,  # the same
    "grpc.server.max_pending_requests_hard_limit": 10_000,
    "grpc.max_connection_idle_ms": 600 * _SECOND,
    "grpc.max_connection_age_ms": 3600 * _SECOND,  # so that clients of a load balancer find new servers
    "grpc.max_connection_age_grace_ms": 600 * _SECOND,
    "grpc.keepalive_time_ms": 60 * _SECOND,  # detects clients that have vanished
    "grpc.keepalive_timeout_ms": 20 * _SECOND,
    "grpc.http2.ping_timeout_ms": 20 * _SECOND,  # its default of a minute would outlast keepalive_timeout_ms
    "grpc.keepalive_permit_without_calls": 1,
    "grpc.http2.min_ping_interval_without_data_ms": 10 * _SECOND,  # clients may send pings of their own
}


class GrpcServer:
    """A running gRPC server."""

    def __init__(self, server: grpc.aio.Server, calls: Calls) -> None:
        self._server, self._calls = server, calls

    async def stop(self, grace: float | None) -> None:
        """Accept no more calls, answer accepted ones within `grace` seconds, and end."""
        self._calls.closing.set()
        await self._server.stop(grace)


@asynccontextmanager
async def serve_grpc(state: ServerState, address: str) -> AsyncIterator[GrpcServer]:
    """
    Serve gRPC at an address, host and port, until the block ends.

    Stop the server before the block ends to answer accepted calls; the end of the block aborts them. ServeError if it cannot
    listen at the address.
    """
    settings = state.settings
    options = {
        **_CONNECTIONS,
        "grpc.max_receive_message_length": settings.max_bytes + v2_protocol.MAX_ENVELOPE_BYTES,
        "grpc.max_send_message_length": -1,
        "grpc.max_metadata_size": settings.max_header_bytes,
        "grpc.absolute_max_metadata_size": settings.max_header_bytes,
        "grpc.server_handshake_timeout_ms": round(settings.header_timeout * _SECOND),
    }
    server = grpc.aio.server(options=list(options.items()))
    service = _Service(state)
    calls = Calls(state, service.methods(), _REASONS)
    service.closing = calls.closing
    server.add_generic_rpc_handlers((calls,))
    try:
        server.add_insecure_port(address)
    except RuntimeError as cause:
        raise ServeError(f"gRPC cannot listen at {address}: choose another port with --grpc-port") from cause
    await server.start()
    running = GrpcServer(server, calls)
    try:
        yield running
    finally:
        await running.stop(None)


class _Service:
    """Implements the methods."""

    def __init__(self, state: ServerState) -> None:
        self._state = state
        self._reflection = reflection.ReflectionServicer((_INFERENCE, _HEALTH, _REFLECTION))
        self.closing = asyncio.Event()

    def methods(self) -> dict[str, Method]:
        """Return the handlers of all methods, by path."""
        inference = {
            "ServerLive": Method(_encoded(self._live), open=True, reads=False),
            "ServerReady": Method(_encoded(self._ready), open=True, reads=False),
            "ModelReady": Method(_encoded(self._model_ready)),
            "ServerMetadata": Method(_encoded(self._server_metadata)),
            "ModelMetadata": Method(_encoded(self._model_metadata)),
            "ModelConfig": Method(_encoded(self._model_config)),
            "ModelStatistics": Method(_encoded(self._statistics)),
            "RepositoryIndex": Method(_encoded(self._index)),
            "ModelInfer": Method(self._infer, bounded=True),
            "ModelStreamInfer": Method(self._stream_infer, stream=True, max_calls=_STREAMS, bounded=True, fault=_stream_fault),
        }
        if self._state.repository is not None:
            inference["RepositoryModelLoad"] = Method(_encoded(self._load))
            inference["RepositoryModelUnload"] = Method(_encoded(self._unload))
        return {
            **{f"/{_INFERENCE}/{name}": method for name, method in inference.items()},
            f"/{_HEALTH}/Check": Method(_encoded(self._check), open=True),
            f"/{_HEALTH}/Watch": Method(self._watch, stream=True, open=True, max_calls=_WATCHERS),
            f"/{_REFLECTION}/ServerReflectionInfo": Method(self._reflect, stream=True, max_calls=_REFLECTIONS),
        }

    async def _live(self, message: bytes) -> Any:
        return pb.ServerLiveResponse(live=self._state.live)

    async def _ready(self, message: bytes) -> Any:
        return pb.ServerReadyResponse(ready=self._state.ready)

    def _model(self, request: Any) -> ServedModel:
        return find_model(self._state.models, request.name, request.version or None)

    async def _model_ready(self, message: bytes) -> Any:
        request = parse(pb.ModelReadyRequest, message)
        try:
            model = self._model(request)
        except RequestError:  # an unknown model is not ready
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=model.ready and not self._state.draining)

    async def _server_metadata(self, message: bytes) -> Any:
        parse(pb.ServerMetadataRequest, message)
        metadata = v2_metadata.server_metadata(self._state)
        return pb.ServerMetadataResponse(**{name: metadata[name] for name in ("name", "version", "extensions")})

    async def _model_metadata(self, message: bytes) -> Any:
        model = self._model(parse(pb.ModelMetadataRequest, message))
        metadata = v2_metadata.model_metadata(self._state.models, model)
        return ParseDict({key: value for key, value in metadata.items() if key != "parameters"}, pb.ModelMetadataResponse())

    async def _model_config(self, message: bytes) -> Any:
        model = self._model(parse(pb.ModelConfigRequest, message))
        return ParseDict({"config": model_config(self._state.models, model)}, pb.ModelConfigResponse())

    async def _statistics(self, message: bytes) -> Any:
        request = parse(pb.ModelStatisticsRequest, message)
        statistics = model_statistics(self._state, request.name or None, request.version or None)
        return ParseDict(statistics, pb.ModelStatisticsResponse())

    async def _index(self, message: bytes) -> Any:
        ready = parse(pb.RepositoryIndexRequest, message).ready
        listed = await asyncio.to_thread(repository_index, self._state, ready=ready)
        return ParseDict({"models": listed}, pb.RepositoryIndexResponse())

    async def _load(self, message: bytes) -> Any:
        repository, request = repository_of(self._state), parse(pb.RepositoryModelLoadRequest, message)
        version, roll_back = v2_protocol.read_load_options(parameters_of(request.parameters))
        name = request.model_name
        await (repository.roll_back(name) if roll_back else repository.load(name, version))
        return pb.RepositoryModelLoadResponse()

    async def _unload(self, message: bytes) -> Any:
        repository, request = repository_of(self._state), parse(pb.RepositoryModelUnloadRequest, message)
        v2_protocol.check_unload_options(parameters_of(request.parameters))
        await repository.unload(request.model_name)
        return pb.RepositoryModelUnloadResponse()

    async def _stream_infer(self, message: bytes, call: Call) -> AsyncIterator[bytes]:
        yield await self._infer(message, call, in_stream=True)

    async def _infer(self, message: bytes, call: Call, *, in_stream: bool = False) -> bytes:
        state, loop = self._state, asyncio.get_running_loop()
        read = partial(parse_infer, message, state.settings.max_pixels)
        request, tensor = await loop.run_in_executor(state.pool, read)
        model = find_model(state.models, request.model_name, request.model_version or None)
        images = await loop.run_in_executor(state.pool, v2_protocol.prepared, tensor, model)
        entries = v2_protocol.requested_outputs(
            model, [v2_protocol.RequestedOutput(output.name, parameters_of(output.parameters)) for output in request.outputs]
        )
        timeout = v2_protocol.read_timeout(parameters_of(request.parameters), state.settings)
        remaining = call.time_remaining()
        if remaining is not None:
            timeout = min(timeout, max(remaining, 1e-3))
        outputs = await model.infer(images, timeout=timeout)
        write = partial(infer_response, model, request, entries, outputs, in_stream=in_stream)
        return await loop.run_in_executor(state.pool, write)

    def _health(self, service: str) -> Any:
        status = health_pb2.HealthCheckResponse
        if service not in ("", _INFERENCE, _HEALTH, _REFLECTION):
            return status.SERVICE_UNKNOWN
        return status.SERVING if self._state.ready else status.NOT_SERVING

    async def _check(self, message: bytes) -> Any:
        status = self._health(parse(health_pb2.HealthCheckRequest, message).service)
        if status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN:
            raise RequestError(404, f"this server has no such service; it has {_INFERENCE}")
        return health_pb2.HealthCheckResponse(status=status)

    async def _watch(self, message: bytes, call: Call) -> AsyncIterator[bytes]:
        service, last = parse(health_pb2.HealthCheckRequest, message).service, None
        while not self.closing.is_set():
            if (status := self._health(service)) != last:
                last = status
                yield health_pb2.HealthCheckResponse(status=status).SerializeToString()
            await asyncio.sleep(_WATCH_INTERVAL)

    async def _reflect(self, message: bytes, call: Call) -> AsyncIterator[bytes]:
        async def one() -> AsyncIterator[Any]:
            yield parse(reflection_pb2.ServerReflectionRequest, message)

        async for answer in self._reflection.ServerReflectionInfo(one(), call):
            yield answer.SerializeToString()


def _encoded(answer: Callable[[bytes], Awaitable[Any]]) -> Callable[[bytes, Call], Awaitable[bytes]]:
    async def encoded(message: bytes, call: Call) -> bytes:
        response: bytes = (await answer(message)).SerializeToString()
        return response

    return encoded


def _stream_fault(message: bytes, text: str) -> bytes:
    written: bytes = pb.ModelStreamInferResponse(error_message=text).SerializeToString()
    return written
