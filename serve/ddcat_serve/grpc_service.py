"""The Open Inference Protocol, version 2, over gRPC: service inference.GRPCInferenceService, in the server's event loop."""

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import unquote

import grpc
import numpy as np
import numpy.typing as npt
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc as stubs

from ddcat_serve import protocol
from ddcat_serve.context import Context
from ddcat_serve.errors import EngineError, InputError, RequestError, ServeError
from ddcat_serve.models import find

__all__ = ["serve_grpc"]

_log = logging.getLogger(__name__)
_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    404: grpc.StatusCode.NOT_FOUND,
    413: grpc.StatusCode.INVALID_ARGUMENT,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
_ROOM = 2**16  # bytes of a message beside its tensor


@asynccontextmanager
async def serve_grpc(context: Context, address: str) -> AsyncIterator[grpc.aio.Server]:
    """
    Serve until the block ends.

    Parameters
    ----------
    context : Context
    address : str
        Host and port.

    Yields
    ------
    grpc.aio.Server
        Whoever stops it before the block ends says how long it answers what it has accepted.

    Raises
    ------
    ServeError
        Where it cannot listen there.
    """
    most = context.settings.max_bytes + _ROOM
    options = [("grpc.max_receive_message_length", most), ("grpc.max_send_message_length", -1), ("grpc.so_reuseport", 0)]
    server = grpc.aio.server(options=options)
    stubs.add_GRPCInferenceServiceServicer_to_server(_Service(context), server)
    try:
        server.add_insecure_port(address)
    except RuntimeError as cause:
        raise ServeError(f"gRPC cannot listen at {address}: choose another port with --grpc-port") from cause
    await server.start()
    try:
        yield server
    finally:
        await server.stop(None)


def _address(peer: str) -> str:
    """Give the address of ``ipv4:127.0.0.1:50312`` or ``ipv6:%5B::1%5D:50312``, as HTTP calls it: a client has one rate."""
    return unquote(peer.partition(":")[2].rpartition(":")[0]).strip("[]")


def _guarded(answer: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """Let a method answer those who may ask, and turn what it raises into a status."""

    async def guarded(self: "_Service", request: Any, call: grpc.aio.ServicerContext[Any, Any]) -> Any:
        metadata = {} if call.invocation_metadata() is None else dict(call.invocation_metadata() or ())
        authorization = [str(metadata["authorization"])] if "authorization" in metadata else []
        try:
            refusal = self.context.guard.refusal(authorization, _address(call.peer()))
            if refusal is not None:
                raise refusal
            return await answer(self, request, call)
        except RequestError as error:
            code, message = _CODES.get(error.status, grpc.StatusCode.INVALID_ARGUMENT), str(error)
        except InputError as error:
            code, message = grpc.StatusCode.INVALID_ARGUMENT, str(error)
        except Exception as error:
            _log.error("gRPC %s: %s", answer.__name__, error, exc_info=not isinstance(error, EngineError))
            code, message = grpc.StatusCode.INTERNAL, "the engine failed; the server's log says why"
        return await call.abort(code, message)

    return guarded


class _Service(stubs.GRPCInferenceServiceServicer):  # type: ignore[misc]
    def __init__(self, context: Context) -> None:
        self.context = context

    async def ServerLive(self, request: Any, call: Any) -> Any:  # noqa: N802
        return pb.ServerLiveResponse(live=self.context.live)

    async def ServerReady(self, request: Any, call: Any) -> Any:  # noqa: N802
        return pb.ServerReadyResponse(ready=self.context.ready)

    @_guarded
    async def ModelReady(self, request: Any, call: Any) -> Any:  # noqa: N802
        model = find(self.context.models, request.name, request.version or None)
        return pb.ModelReadyResponse(ready=model.ready and not self.context.draining)

    @_guarded
    async def ServerMetadata(self, request: Any, call: Any) -> Any:  # noqa: N802
        found = protocol.server_metadata(self.context.settings)
        return pb.ServerMetadataResponse(name=found["name"], version=found["version"], extensions=found["extensions"])

    @_guarded
    async def ModelMetadata(self, request: Any, call: Any) -> Any:  # noqa: N802
        model = find(self.context.models, request.name, request.version or None)
        found = protocol.model_metadata(self.context.models, model)
        tensors = {
            kind: [pb.ModelMetadataResponse.TensorMetadata(**tensor) for tensor in found[kind]]
            for kind in ("inputs", "outputs")
        }
        return pb.ModelMetadataResponse(name=found["name"], versions=found["versions"], platform=found["platform"], **tensors)

    @_guarded
    async def ModelInfer(self, request: Any, call: Any) -> Any:  # noqa: N802
        model = find(self.context.models, request.model_name, request.model_version or None)
        settings = self.context.settings
        images = _images(request, settings.max_pixels)
        wanted = protocol.wanted_outputs(model, [output.name for output in request.outputs])
        parameters = {
            name: getattr(value, kind)
            for name, value in request.parameters.items()
            if (kind := value.WhichOneof("parameter_choice")) is not None
        }
        timeout, remaining = protocol.timeout_of(parameters, settings), call.time_remaining()
        outputs = await model.infer(images, timeout=timeout if remaining is None else min(timeout, max(remaining, 1e-3)))
        answer = pb.ModelInferResponse(model_name=model.name, model_version=model.version, id=request.id)
        for entry in wanted:
            values: npt.NDArray[Any] = getattr(outputs, entry.name)
            answer.outputs.add(name=entry.name, datatype=protocol.DATATYPES[entry.dtype], shape=values.shape)
            answer.raw_output_contents.append(await asyncio.to_thread(np.ascontiguousarray(values).tobytes))
        return answer


def _images(request: Any, max_pixels: int) -> npt.NDArray[np.uint8]:
    """Read the one input, as raw bytes or as numbers."""
    if [tensor.name for tensor in request.inputs] != ["image"]:
        raise RequestError(400, f"inputs are {[tensor.name for tensor in request.inputs]}; the model has one, image")
    tensor, shape = request.inputs[0], list(request.inputs[0].shape)
    protocol.check_image(tensor.datatype, shape, max_pixels)
    count, raw, numbers = math.prod(shape), request.raw_input_contents, tensor.contents.uint_contents
    if raw and numbers:
        raise RequestError(400, "image has both raw contents and numbers")
    if len(raw) > 1:
        raise RequestError(400, f"{len(raw)} raw contents follow, for one input")
    if raw:
        values = np.frombuffer(raw[0], np.uint8)
    else:
        wide = np.array(numbers, np.uint32)
        if wide.size and wide.max() > 255:
            raise RequestError(400, f"the data of image goes up to {wide.max()}; UINT8 takes 0..255")
        values = wide.astype(np.uint8)
    if values.size != count:
        raise RequestError(400, f"the data of image has {values.size} values; {shape} takes {count}")
    return values.reshape(shape)
