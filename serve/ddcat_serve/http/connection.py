"""HTTP connections: uvicorn's, with limits on time and size, and with a defined end."""

import asyncio
import json
import logging
from typing import Any

import httptools
from starlette.types import Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from ddcat_serve.http.channel import Channel
from ddcat_serve.http.server_state import ServerState
from ddcat_serve.observe.json_logging import ACCESS

__all__ = ["Connection"]

_MAX_CONNECTIONS = 2**13
_OTHER_FILES = 128  # file descriptors that are left for other purposes
_SLICE = 2**12  # bytes that are parsed at once: at most a few hundred requests
_log = logging.getLogger(ACCESS)


class Connection(HttpToolsProtocol):
    """
    A connection that no client can hold open for ever.

    uvicorn waits for ever for the rest of a header and keeps all of it; it waits for ever for clients that do not read. Any
    byte stops its timer, even one that begins no request: line ends between two requests, the rest of a body that was refused
    early. It also parses everything that it receives, even ten thousand requests in one packet; here the rest is held while
    requests wait. The settings of `state` have the limits; the other arguments are those of uvicorn's own class.
    """

    def __init__(self, state: ServerState, **uvicorns: Any) -> None:
        super().__init__(**uvicorns)
        self._state, self._settings = state, state.settings
        self._application, self.app = self.app, self._answer
        self._timer: asyncio.TimerHandle | None = (
            None  # for a request's headers, or for the rest of a body that was answered early
        )
        self._held = b""  # not parsed while requests wait; if it is not empty, neither is the pipeline
        self._received = 0  # bytes of headers, trailers and chunk sizes since the last progress
        self._progressed = False  # whether those that are being read were, or did
        self._in_body = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for a request, unless there are too many connections."""
        self._channel = Channel(transport, self.loop, self._settings.body_timeout)
        super().connection_made(self._channel)  # type: ignore[arg-type] # as much of a transport as uvicorn uses
        if len(self.connections) > _most_connections():
            self._refuse(503, "too many connections are open: try again in 1 s", b"Retry-After: 1\r\n")
        else:
            self._expect_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel all timers."""
        self._cancel_timer()
        self._held = b""
        self._channel.lost()
        super().connection_lost(exc)

    def eof_received(self) -> bool:  # type: ignore[override]
        """Answer the pending request, where uvicorn would close: a client may end its half once it has asked."""
        self._channel.ended()
        if self.cycle is None or self.cycle.response_complete or self._in_body:
            self.transport.close()
            return True
        self._cancel_timer()
        self.cycle.keep_alive = False
        if not self.pipeline and not self.cycle.response_started:
            self._channel.probe()
        return True

    def pause_writing(self) -> None:
        """Wait for the client to read, for a limited time."""
        super().pause_writing()
        self._channel.watch()

    def resume_writing(self) -> None:
        """Resume writing."""
        super().resume_writing()
        self._channel.unwatch()

    def data_received(self, data: bytes) -> None:
        """Read requests, or drop bytes after the last response."""
        if self._channel.is_closing():
            self._channel.drop(len(data))
        else:
            self._held += data
            self._read_on()

    def on_response_complete(self) -> None:
        """Start the next request in the pipeline, and read on after the last."""
        super().on_response_complete()
        self._read_on()

    def on_message_begin(self) -> None:
        """Wait for the headers, for a limited time."""
        super().on_message_begin()
        if self._channel.is_closing():
            return
        self._expect_headers()
        self._channel.unread = True

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header, but drop a trailer: it would pass for a header, such as a key or a host (RFC 9110, 6.5.1)."""
        if not self._in_body:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Call the application, unless the headers are too long."""
        self._progressed = True
        if self._channel.is_closing() or self.parser.should_upgrade():
            return  # in the second case the parser leaves the body to another protocol: see `_parse`
        self._cancel_timer()
        if len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > self._settings.max_header_bytes:
            self._refuse(431, "the headers are too long")
        else:
            super().on_headers_complete()
            self._in_body = True

    def on_body(self, body: bytes) -> None:
        """Keep a part of a body, or drop it if its request has been answered."""
        self._progressed = True
        if self._channel.is_closing() or self.cycle.response_complete:
            self._channel.drop(len(body))
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """End a request: all of it has arrived."""
        self._progressed = True
        if self.parser.should_upgrade():
            return
        self._cancel_timer()
        self._in_body = self._channel.unread = False
        if not self._channel.is_closing():
            super().on_message_complete()

    def _read_on(self) -> None:
        """Parse the held bytes in slices until requests wait; while some are left, nothing more is received."""
        rest = memoryview(self._held)
        while rest and not self.pipeline and not self._channel.is_closing():
            self._read(rest[:_SLICE])
            rest = rest[_SLICE:]
        if self._channel.is_closing():
            self._held = b""
        else:
            self._held = bytes(rest)
            self._channel.hold(bool(rest), paused=self.flow.read_paused)

    def _read(self, data: memoryview) -> None:
        self._unset_keepalive_if_required()
        self._progressed = False  # whether the bytes being parsed ended headers or belonged to a body
        try:
            self._parse(data)
        except httptools.HttpParserError:
            self._refuse(400, "the request is not HTTP/1.1")
        if self._channel.is_closing():
            return
        if self._timer is None and self.cycle is not None and self.cycle.response_complete:
            self._expect_more()
        self._received = 0 if self._progressed else self._received + len(data)
        if self._received > self._settings.max_header_bytes:
            self._refuse(431, f"the {'trailers' if self._in_body else 'headers'} are too long")

    def _parse(self, rest: memoryview) -> None:
        """
        Feed the parser; a request that offers another protocol is handled in this one (RFC 9110, 7.8).

        The parser stops after the headers of such a request. It is replaced by a new one, which is fed the headers without the
        offer, and then the rest.
        """
        while True:
            try:
                self.parser.feed_data(rest)
            except httptools.HttpParserUpgrade as offer:
                rest = rest[offer.args[0] :]
                method, version = self.parser.get_method(), self.parser.get_http_version().encode()
                if method == b"CONNECT":
                    self._refuse(400, "CONNECT is for proxies, and this server is not one")
                    return
                kept = [b"%s: %s\r\n" % header for header in self.headers if header[0] != b"upgrade"]
                head = b"%s %s HTTP/%s\r\n%s\r\n" % (method, self.url, version, b"".join(kept))
                self.parser = httptools.HttpRequestParser(self)
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
                self.parser.feed_data(head)
            else:
                return

    def _expect_more(self) -> None:
        if self._in_body:
            self._timer = self.loop.call_later(self._settings.body_timeout, self.transport.close)
        else:
            self._expect_headers()

    def _expect_headers(self) -> None:
        self._cancel_timer()
        self._received = 0
        self._timer = self.loop.call_later(self._settings.header_timeout, self._late)

    def _late(self) -> None:
        if self.flow.read_paused or self._held:  # the headers wait here, behind requests that are being answered
            self._expect_headers()
        else:
            self._refuse(408, "the headers did not arrive in time")

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _refuse(self, status: int, message: str, header: bytes = b"") -> None:
        """Respond with an error, and close without reading further."""
        self._cancel_timer()
        if self.transport.is_closing():
            return
        if self.cycle is not None and self.cycle.response_complete and self._in_body:
            self.transport.close()  # it has its response
            return
        if self.cycle is not None and not self.cycle.response_complete:
            if self.pipeline or not self._in_body:  # an earlier request is still being answered: the connection ends after it
                self.cycle.keep_alive = False
                self.flow.pause_reading()
                return
            self._forget_cycle()
            self.cycle.message_event.set()
        body = json.dumps({"error": message}).encode()
        self.transport.write(
            STATUS_LINE[status] + header + b"Content-Type: application/json\r\nX-Content-Type-Options: nosniff\r\n"
            b"Content-Length: %d\r\nConnection: close\r\n\r\n%s" % (len(body), body)
        )
        client = self.client[0] if self.client else "unknown"
        _log.info(json.dumps({"client": client, "status": status, "error": message}))
        self._channel.unread = True
        self.transport.close()

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Call the application; during shutdown, mark the last response of the connection as the last."""

        async def tell(message: Message) -> None:
            if message["type"] == "http.response.start" and self._state.draining and not self.pipeline:
                message = {**message, "headers": [*message["headers"], (b"connection", b"close")]}
            await send(message)

        try:
            await self._application(scope, receive, tell)
        except asyncio.CancelledError:  # by uvicorn, if the drain ends in the middle of a response
            self._forget_cycle()
            self._channel.abort()

    def _forget_cycle(self) -> None:
        self.cycle.disconnected = True  # uvicorn stops writing for it, and reports no missing response


def _most_connections() -> int:
    try:
        import resource  # noqa: PLC0415 -- Windows has none
    except ImportError:
        return _MAX_CONNECTIONS
    return max(1, min(_MAX_CONNECTIONS, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - _OTHER_FILES))
