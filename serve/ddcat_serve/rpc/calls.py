"""
Checks for every gRPC call: ID, API key, rate limit and size; then log and metrics.

All methods are handled here, unknown ones too, and a message is read only after its call was admitted: a grpc server that
knows its methods reads the message first.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from urllib.parse import unquote

import grpc

from ddcat.engines.errors import EngineError, InputError
from ddcat_serve.errors import RequestError, quoted
from ddcat_serve.http.byte_budget import ByteBudget
from ddcat_serve.http.server_state import ServerState
from ddcat_serve.http.v2_protocol import MAX_ENVELOPE_BYTES
from ddcat_serve.observe.json_logging import log_access, request_id

__all__ = ["Call", "Calls", "Method"]

_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    408: grpc.StatusCode.DEADLINE_EXCEEDED,
    409: grpc.StatusCode.ABORTED,
    413: grpc.StatusCode.INVALID_ARGUMENT,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    501: grpc.StatusCode.UNIMPLEMENTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
_MAX_CALLS = 1000  # at once, of all clients
_PROBES = 4  # messages of the largest size, of calls that need no key
_PROBE_TIMEOUT = 1.0  # seconds in which the few bytes of a probe must arrive
_IDLE_TIMEOUT = 600.0  # seconds for which a stream may be silent
_MAX_DETAILS = 1000  # characters: more than a few kB are a protocol error to clients
_log = logging.getLogger(__name__)


def _is_not_a_lost_client(record: logging.LogRecord) -> bool:
    return not (record.exc_info and isinstance(record.exc_info[1], grpc.aio.InternalError))


# grpc logs an error with a traceback if a client leaves, or its deadline passes, while its response is sent
logging.getLogger("grpc._cython.cygrpc").addFilter(_is_not_a_lost_client)

Call = Any  # grpc.aio.ServicerContext


class Method(NamedTuple):
    """Handler of a gRPC method."""

    answer: Callable[[bytes, Call], Any]  # takes a message; returns the response, for a stream an iterator over responses
    stream: bool = False  # of messages in both directions
    open: bool = False  # whether it needs no key
    max_calls: int = _MAX_CALLS  # at once
    bounded: bool = False  # whether `answer` itself limits the size of the message; others hold little more than names
    reads: bool = True  # whether its message has content
    fault: Callable[[bytes, str], bytes] | None = None  # makes a stream's response to a message that failed; None: it ends


@dataclass
class _Request:
    """A call, or one message of a stream."""

    path: str
    method: Method | None
    call: Call
    began: float = field(default_factory=time.perf_counter)

    def __post_init__(self) -> None:
        # values of keys ending in -bin are bytes
        sent = [(key, value) for key, value in self.call.invocation_metadata() or () if isinstance(value, str)]
        self.authorization = [value for key, value in sent if key == "authorization"]
        self.identity = request_id(next((value for key, value in sent if key == "x-request-id"), ""))
        self.client = _address(self.call.peer())
        self.name = self.path.rpartition("/")[2]


class Calls(grpc.GenericRpcHandler):  # type: ignore[misc]
    """
    Handler of all gRPC calls.

    Methods are by path, such as ``/inference.GRPCInferenceService/ModelInfer``; `reasons` say why methods that clients may know
    are missing, by name.
    """

    def __init__(self, state: ServerState, methods: Mapping[str, Method], reasons: Mapping[str, str]) -> None:
        self._state, self._methods, self._reasons = state, methods, reasons
        self._largest = state.settings.max_bytes
        # as large as the budget of HTTP, but separate: a message counts as the largest until it has arrived
        self._budget, self._probes = ByteBudget(max(state.byte_budget.size, self._largest)), ByteBudget(_PROBES * self._largest)
        self._running: Counter[str] = Counter()  # calls, by path
        self.closing = asyncio.Event()  # ends streams, which clients may keep open for as long as they like

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        """Return the handler of a method, known or unknown."""
        path: str = details.method
        method = self._methods.get(path)

        # both read their messages themselves
        async def unary(_: object, call: Call) -> Any:
            return await self._entered(_Request(path, method, call), self._unary)

        async def stream(_: object, call: Call) -> None:
            await self._entered(_Request(path, method, call), self._stream)

        if method is not None and method.stream:
            return grpc.stream_stream_rpc_method_handler(stream)
        return grpc.stream_unary_rpc_method_handler(unary)

    async def _entered(self, request: _Request, run: Callable[[_Request, Method], Awaitable[Any]]) -> Any:
        """Admit a call, run it, translate its error into a status, and log it."""
        status, text, headers = grpc.StatusCode.CANCELLED, "", {"x-request-id": request.identity}
        self._running[request.path] += 1
        try:
            method = self._admitted(request)
            request.call.set_trailing_metadata(tuple(headers.items()))
            answer = await run(request, method)
            status = grpc.StatusCode.OK
            return answer
        except Exception as error:
            status, text = _fault(request, error)
            if isinstance(error, RequestError):
                headers |= {key.lower(): value for key, value in error.headers.items()}
        finally:
            self._running[request.path] -= 1
            if not self._running[request.path]:
                del self._running[request.path]  # paths are the client's choice
            if status is not grpc.StatusCode.OK or request.method is None or request.method.fault is None:
                self._trace(request, status)  # each message of a stream has been logged on its own
        return await request.call.abort(status, text, tuple(headers.items()))

    def _admitted(self, request: _Request) -> Method:
        if request.method is None or not request.method.open:
            self._admit(request)
        if request.method is None:
            reason = self._reasons.get(request.name, "reflection lists what there is")
            service = request.path.removesuffix(request.name)
            known = request.name and any(path.startswith(service) for path in self._methods)
            shown = quoted(request.name if known else request.path)[1:-1]
            raise RequestError(501, f"this server has no {shown}: {reason}")
        if self._running[request.path] > request.method.max_calls or self._running.total() > _MAX_CALLS:
            raise RequestError(429, "too many calls at once: try again later")
        return request.method

    def _admit(self, request: _Request) -> None:
        refusal = self._state.access_control.refusal(request.authorization, request.client)
        if refusal is not None:
            raise refusal

    async def _unary(self, request: _Request, method: Method) -> Any:
        if not method.reads:
            return await method.answer(b"", request.call)
        if method.open:
            return await method.answer(await self._probe(request.call), request.call)
        async with self._in_hand(request) as message:
            return await method.answer(message if method.bounded else _short(message), request.call)

    @asynccontextmanager
    async def _in_hand(self, request: _Request) -> AsyncIterator[bytes]:
        """Read the message, holding its bytes in the budget during the block; until it has arrived, the largest size."""
        held, timeout = self._largest, self._state.settings.body_timeout
        try:
            async with asyncio.timeout(timeout):
                await self._budget.take(held)
        except TimeoutError as cause:
            raise RequestError(
                429, "the server holds too many bytes of requests: try again later", {"Retry-After": "1"}
            ) from cause
        try:
            message = await self._message(request.call, timeout - (time.perf_counter() - request.began))
            if message is None:
                raise RequestError(400, "the call holds no message")
            self._budget.give_back(held - min(held, len(message)))
            held = min(held, len(message))
            yield message
        finally:
            self._budget.give_back(held)

    async def _stream(self, request: _Request, method: Method) -> None:
        """Answer messages one by one; their bytes are limited by the number of streams."""
        if method.open:  # a watch: it has one message
            async for answer in method.answer(await self._probe(request.call), request.call):
                await request.call.write(answer)
            return
        current: _Request | None = request
        timeout = self._state.settings.body_timeout
        while (message := await self._message(request.call, timeout, stream=True)) is not None:
            await self._answer_one(
                current or _Request(request.path, method, request.call), method, message, first=current is request
            )
            current, timeout = None, _IDLE_TIMEOUT

    async def _answer_one(self, request: _Request, method: Method, message: bytes, *, first: bool) -> None:
        status = grpc.StatusCode.CANCELLED
        try:
            if not first:  # each message counts for the rate limit
                self._admit(request)
            async for answer in method.answer(message if method.bounded else _short(message), request.call):
                await request.call.write(answer)
            status = grpc.StatusCode.OK
        except Exception as error:
            if method.fault is None:
                raise
            status, text = _fault(request, error)
            await request.call.write(method.fault(message, text))
        finally:
            if method.fault is not None:
                self._trace(request, status)

    async def _probe(self, call: Call) -> bytes:
        """Read the message of a call without a key; if there are too many, return an empty one, which asks for the server."""
        if not self._probes.try_take(self._largest):
            return b""
        try:
            return _short(await self._message(call, _PROBE_TIMEOUT) or b"")
        finally:
            self._probes.give_back(self._largest)

    async def _message(self, call: Call, timeout: float, *, stream: bool = False) -> bytes | None:
        """Read a message; return None at the end of the stream."""
        reading = asyncio.ensure_future(call.read())
        reading.add_done_callback(
            lambda done: done.cancelled() or done.exception()
        )  # marks an error as retrieved: nobody asks for that of an ended call
        closing = asyncio.ensure_future(self.closing.wait()) if stream else None
        try:
            either = {reading} if closing is None else {reading, closing}
            await asyncio.wait(either, timeout=max(timeout, 0), return_when=asyncio.FIRST_COMPLETED)
        finally:
            if closing is not None:
                closing.cancel()
        if not reading.done():
            if self.closing.is_set() and stream:
                raise RequestError(503, "the server is stopping: use another one")
            raise RequestError(408, f"the message did not arrive within {timeout:.3g} s")
        message = reading.result()
        return None if message is grpc.aio.EOF else message

    def _trace(self, request: _Request, status: grpc.StatusCode) -> None:
        seconds = time.perf_counter() - request.began
        self._state.metrics.count_request("none" if request.method is None else request.name, "gRPC", status.name, seconds)
        log_access(
            request.identity, client=request.client, method="gRPC", path=request.path, status=status.name, seconds=seconds
        )


def _fault(request: _Request, error: Exception) -> tuple[grpc.StatusCode, str]:
    """Return the status and message for a client; the details are logged."""
    if isinstance(error, RequestError):
        return _CODES.get(error.status, grpc.StatusCode.INVALID_ARGUMENT), str(error)[:_MAX_DETAILS]
    if isinstance(error, InputError):
        return grpc.StatusCode.INVALID_ARGUMENT, str(error)[:_MAX_DETAILS]
    known = isinstance(error, EngineError)
    _log.error("gRPC %s, request %s: %s", request.name, request.identity, error, exc_info=None if known else error)
    return grpc.StatusCode.INTERNAL, f"the engine failed; the server's log says why under request {request.identity}"


def _short(message: bytes) -> bytes:
    if len(message) > MAX_ENVELOPE_BYTES:
        raise RequestError(413, f"the message has {len(message)} bytes; expected at most {MAX_ENVELOPE_BYTES}")
    return message


def _address(peer: str) -> str:
    """Return the address in ``ipv4:127.0.0.1:50312`` or ``ipv6:%5B::1%5D:50312`` as HTTP has it: both share a rate limit."""
    return unquote(peer.partition(":")[2].rpartition(":")[0]).strip("[]")
