"""
What every gRPC call passes: its id, the key, the rate of its client, the bounds; and at the end the log and the metrics.

Each method is answered here, those too that are not there, and its message is read only after the call was let in: a server of
grpc that knows its methods reads first.
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
from ddcat_serve.access import log_access, request_id
from ddcat_serve.errors import RequestError, quoted
from ddcat_serve.http.byte_budget import Room
from ddcat_serve.http.server_state import Context
from ddcat_serve.http.v2_protocol import ROOM

__all__ = ["Call", "Calls", "Method"]

_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    404: grpc.StatusCode.NOT_FOUND,
    408: grpc.StatusCode.DEADLINE_EXCEEDED,
    413: grpc.StatusCode.INVALID_ARGUMENT,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    501: grpc.StatusCode.UNIMPLEMENTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
_CALLS = 1000  # at once, of all clients
_PROBES = 4  # messages of the largest size of those who need no key
_PROBE = 1.0  # seconds in which the few bytes of a probe must have come
_IDLE = 600.0  # seconds for which a stream may be silent
_DETAILS = 1000  # characters: more than a few kB of them are a protocol error to clients
_log = logging.getLogger(__name__)


def _of_no_client_that_left(record: logging.LogRecord) -> bool:
    return not (record.exc_info and isinstance(record.exc_info[1], grpc.aio.InternalError))


# grpc logs an error with a traceback where a client leaves, or its deadline passes, just when its answer is sent
logging.getLogger("grpc._cython.cygrpc").addFilter(_of_no_client_that_left)

Call = Any  # grpc.aio.ServicerContext


class Method(NamedTuple):
    """
    How a method is answered.

    Attributes
    ----------
    answer : callable
        Takes the bytes of a message and the call. Returns the bytes of the answer; of a stream, an iterator over those.
    stream : bool
        Whether messages come and go as a stream.
    open : bool
        Whether it is answered without the key.
    most : int
        Calls at once.
    bounded : bool
        Whether `answer` itself bounds the message; others hold little more than names.
    reads : bool
        Whether there is anything in its message.
    fault : callable, optional
        Writes the answer of a stream to a message that is refused; takes the message and the text. Without it the stream ends.
    """

    answer: Callable[[bytes, Call], Any]
    stream: bool = False
    open: bool = False
    most: int = _CALLS
    bounded: bool = False
    reads: bool = True
    fault: Callable[[bytes, str], bytes] | None = None


@dataclass
class _Asked:
    """A call, or a message of a stream, from its coming to its answer."""

    path: str
    method: Method | None
    call: Call
    began: float = field(default_factory=time.perf_counter)

    def __post_init__(self) -> None:
        # values of keys that end in -bin are bytes
        sent = [(key, value) for key, value in self.call.invocation_metadata() or () if isinstance(value, str)]
        self.authorization = [value for key, value in sent if key == "authorization"]
        self.identity = request_id(next((value for key, value in sent if key == "x-request-id"), ""))
        self.client = _address(self.call.peer())
        self.name = self.path.rpartition("/")[2]


class Calls(grpc.GenericRpcHandler):  # type: ignore[misc]
    """
    Handler of all calls.

    Parameters
    ----------
    context : Context
    methods : mapping of str to Method
        By path, ``/inference.GRPCInferenceService/ModelInfer``.
    reasons : mapping of str to str
        Why methods that clients know are not there, by name.
    """

    def __init__(self, context: Context, methods: Mapping[str, Method], reasons: Mapping[str, str]) -> None:
        self._context, self._methods, self._reasons = context, methods, reasons
        self._largest = context.settings.max_bytes
        # as much as HTTP has, but not the same: a message counts as the largest until it has come
        self._room, self._probes = Room(max(context.room.most, self._largest)), Room(_PROBES * self._largest)
        self._running: Counter[str] = Counter()  # calls, by path
        self.closing = asyncio.Event()  # streams end: a client may keep one for as long as it likes

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        """Return what answers a method, of any name."""
        path: str = details.method
        method = self._methods.get(path)

        async def unary(_: object, call: Call) -> Any:
            return await self._entered(_Asked(path, method, call), self._unary)

        async def stream(_: object, call: Call) -> None:
            await self._entered(_Asked(path, method, call), self._stream)

        # both read the messages themselves
        if method is not None and method.stream:
            return grpc.stream_stream_rpc_method_handler(stream)
        return grpc.stream_unary_rpc_method_handler(unary)

    async def _entered(self, asked: _Asked, run: Callable[[_Asked, Method], Awaitable[Any]]) -> Any:
        """Let a call in, run it, turn what it raises into a status, and leave a trace of it."""
        status, text, headers = grpc.StatusCode.CANCELLED, "", {"x-request-id": asked.identity}
        self._running[asked.path] += 1
        try:
            method = self._admitted(asked)
            asked.call.set_trailing_metadata(tuple(headers.items()))
            answer = await run(asked, method)
            status = grpc.StatusCode.OK
            return answer
        except Exception as error:
            status, text = _fault(asked, error)
            if isinstance(error, RequestError):
                headers |= {key.lower(): value for key, value in error.headers.items()}
        finally:
            self._running[asked.path] -= 1
            if not self._running[asked.path]:
                del self._running[asked.path]  # paths are the client's to invent
            if status is not grpc.StatusCode.OK or asked.method is None or asked.method.fault is None:
                self._trace(asked, status)  # of a stream each message has left its own
        return await asked.call.abort(status, text, tuple(headers.items()))

    def _admitted(self, asked: _Asked) -> Method:
        if asked.method is None or not asked.method.open:
            self._admit(asked)
        if asked.method is None:
            reason = self._reasons.get(asked.name, "reflection lists what there is")
            service = asked.path.removesuffix(asked.name)
            known = asked.name and any(path.startswith(service) for path in self._methods)
            shown = quoted(asked.name if known else asked.path)[1:-1]
            raise RequestError(501, f"this server has no {shown}: {reason}")
        if self._running[asked.path] > asked.method.most or self._running.total() > _CALLS:
            raise RequestError(429, "too many calls at once: try again later")
        return asked.method

    def _admit(self, asked: _Asked) -> None:
        refusal = self._context.guard.refusal(asked.authorization, asked.client)
        if refusal is not None:
            raise refusal

    async def _unary(self, asked: _Asked, method: Method) -> Any:
        if not method.reads:
            return await method.answer(b"", asked.call)
        if method.open:
            return await method.answer(await self._probe(asked.call), asked.call)
        async with self._in_hand(asked) as message:
            return await method.answer(message if method.bounded else _short(message), asked.call)

    @asynccontextmanager
    async def _in_hand(self, asked: _Asked) -> AsyncIterator[bytes]:
        """Read the message, and hold its bytes as long as the block lasts: the most that it may have, until it has come."""
        held, timeout = self._largest, self._context.settings.body_timeout
        try:
            async with asyncio.timeout(timeout):
                await self._room.take(held)
        except TimeoutError as cause:
            raise RequestError(
                429, "the server holds too many bytes of requests: try again later", {"Retry-After": "1"}
            ) from cause
        try:
            message = await self._message(asked.call, timeout - (time.perf_counter() - asked.began))
            if message is None:
                raise RequestError(400, "the call holds no message")
            self._room.give(held - min(held, len(message)))
            held = min(held, len(message))
            yield message
        finally:
            self._room.give(held)

    async def _stream(self, asked: _Asked, method: Method) -> None:
        """Answer one message after the other; how many streams there are bounds their bytes."""
        if method.open:  # to watch, for which one message is enough
            async for answer in method.answer(await self._probe(asked.call), asked.call):
                await asked.call.write(answer)
            return
        now: _Asked | None = asked
        timeout = self._context.settings.body_timeout
        while (message := await self._message(asked.call, timeout, stream=True)) is not None:
            await self._answer_one(now or _Asked(asked.path, method, asked.call), method, message, first=now is asked)
            now, timeout = None, _IDLE

    async def _answer_one(self, asked: _Asked, method: Method, message: bytes, *, first: bool) -> None:
        status = grpc.StatusCode.CANCELLED
        try:
            if not first:  # each counts in the rate of its client
                self._admit(asked)
            async for answer in method.answer(message if method.bounded else _short(message), asked.call):
                await asked.call.write(answer)
            status = grpc.StatusCode.OK
        except Exception as error:
            if method.fault is None:
                raise
            status, text = _fault(asked, error)
            await asked.call.write(method.fault(message, text))
        finally:
            if method.fault is not None:
                self._trace(asked, status)

    async def _probe(self, call: Call) -> bytes:
        """Read the message of who needs no key; where too many do, none: it then asks for the whole server."""
        if not self._probes.take_now(self._largest):
            return b""
        try:
            return _short(await self._message(call, _PROBE) or b"")
        finally:
            self._probes.give(self._largest)

    async def _message(self, call: Call, timeout: float, *, stream: bool = False) -> bytes | None:
        """Read a message; None at the end."""
        reading = asyncio.ensure_future(call.read())
        reading.add_done_callback(
            lambda done: done.cancelled() or done.exception()
        )  # of a call that ended nobody asks any more
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
            raise RequestError(408, f"the message did not come within {timeout:.3g} s")
        message = reading.result()
        return None if message is grpc.aio.EOF else message

    def _trace(self, asked: _Asked, status: grpc.StatusCode) -> None:
        seconds = time.perf_counter() - asked.began
        self._context.metrics.count_request("none" if asked.method is None else asked.name, "gRPC", status.name, seconds)
        log_access(asked.identity, client=asked.client, method="gRPC", path=asked.path, status=status.name, seconds=seconds)


def _fault(asked: _Asked, error: Exception) -> tuple[grpc.StatusCode, str]:
    """Return the status that an error is to a client, and what the client reads; the log has what it must not."""
    if isinstance(error, RequestError):
        return _CODES.get(error.status, grpc.StatusCode.INVALID_ARGUMENT), str(error)[:_DETAILS]
    if isinstance(error, InputError):
        return grpc.StatusCode.INVALID_ARGUMENT, str(error)[:_DETAILS]
    known = isinstance(error, EngineError)
    _log.error("gRPC %s, request %s: %s", asked.name, asked.identity, error, exc_info=None if known else error)
    return grpc.StatusCode.INTERNAL, f"the engine failed; the server's log says why under request {asked.identity}"


def _short(message: bytes) -> bytes:
    if len(message) > ROOM:
        raise RequestError(413, f"the message has {len(message)} bytes; expected at most {ROOM}")
    return message


def _address(peer: str) -> str:
    """Return the address of ``ipv4:127.0.0.1:50312`` or ``ipv6:%5B::1%5D:50312`` as HTTP calls it: a client has one rate."""
    return unquote(peer.partition(":")[2].rpartition(":")[0]).strip("[]")
