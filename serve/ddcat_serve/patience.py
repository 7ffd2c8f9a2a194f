"""uvicorn's HTTP connections, with an end to how long and how large the headers of a request may be."""

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from ddcat_serve.settings import Settings

__all__ = ["patient"]

_PHRASES = {408: b"Request Timeout", 431: b"Request Header Fields Too Large"}


def patient(settings: Settings) -> type[HttpToolsProtocol]:
    """
    Make the class of connections.

    uvicorn ends connections on which nothing is asked, but waits for ever for the rest of a header, and keeps all of it. Its
    clock stops at any byte, which need not begin a request: line ends between two of them, what is left of a body that was
    refused early.

    Parameters
    ----------
    settings : Settings
        `header_timeout`, `max_header_bytes` and `body_timeout`.
    """

    class Patient(HttpToolsProtocol):
        _waits: asyncio.TimerHandle | None = None  # for a request's headers, or for the rest of an answered one's body
        _received = 0  # bytes of headers meanwhile
        _in_body = False
        _ended = False

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._expect_headers()

        def connection_lost(self, exc: Exception | None) -> None:
            self._wait_no_more()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            if self._ended:
                return
            super().data_received(data)
            if self._waits is None:
                if self.cycle is not None and self.cycle.response_complete:
                    self._expect_more()
            elif not self._in_body:
                self._received += len(data)
                if self._received > settings.max_header_bytes:
                    self._end(431, b"the headers are too long")

        def on_message_begin(self) -> None:
            super().on_message_begin()
            self._expect_headers()

        def on_headers_complete(self) -> None:
            self._wait_no_more()
            if len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > settings.max_header_bytes:
                self._end(431, b"the headers are too long")
            else:
                super().on_headers_complete()
                self._in_body = True

        def on_body(self, body: bytes) -> None:
            if not self._ended:
                super().on_body(body)

        def on_message_complete(self) -> None:
            self._wait_no_more()
            self._in_body = False
            if not self._ended:
                super().on_message_complete()

        def _expect_more(self) -> None:
            if self._in_body:
                self._waits = self.loop.call_later(settings.body_timeout, self.transport.close)
            else:
                self._expect_headers()

        def _expect_headers(self) -> None:
            self._wait_no_more()
            self._received = 0
            self._waits = self.loop.call_later(settings.header_timeout, self._end, 408, b"the headers did not come in time")

        def _wait_no_more(self) -> None:
            if self._waits is not None:
                self._waits.cancel()
                self._waits = None

        def _end(self, status: int, message: bytes) -> None:
            self._wait_no_more()
            self._ended = True
            if self.transport.is_closing():
                return
            body = b'{"error":"%s"}' % message
            self.transport.write(
                b"HTTP/1.1 %d %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s"
                % (status, _PHRASES[status], len(body), body)
            )
            self.transport.close()

    return Patient
