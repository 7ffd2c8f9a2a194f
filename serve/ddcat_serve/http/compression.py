"""Compression: request bodies are decompressed up to a limit, JSON responses are compressed if the client accepts it."""

import asyncio
import zlib

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ddcat_serve.errors import RequestError, quoted
from ddcat_serve.http.content_negotiation import accepts_coding

__all__ = ["CompressionMiddleware", "Decoder", "decoder_of"]

_CODINGS = {"gzip": 31, "x-gzip": 31, "deflate": zlib.MAX_WBITS}  # zlib's `wbits`
_RAW = -zlib.MAX_WBITS  # deflate without zlib's header, as some clients send it
_MAX_MEMBERS = 10_000  # of a gzip file: each costs about as much as 10 kB
_MIN_BYTES = 1000  # shorter responses are not compressed
_LEVEL = 5  # of 9: twice as fast as gzip's default, 9, for a few per cent more bytes


class Decoder:
    """Decompresses a body piece by piece, from gzip, x-gzip or deflate, to at most `max_bytes`."""

    def __init__(self, coding: str, max_bytes: int) -> None:
        self._bits, self._max_bytes = _CODINGS[coding], max_bytes
        self._members = 0
        self._produced = 0
        self._stream: zlib._Decompress | None = None

    def feed(self, data: bytes) -> bytes:
        """Decompress a piece; RequestError: 400 if it is not such a stream, 413 if there would be more than `max_bytes`."""
        pieces = []
        while data:
            if self._stream is None:
                self._begin(data)
            assert self._stream is not None
            try:
                piece = self._stream.decompress(data, self._max_bytes - self._produced + 1)
            except zlib.error as cause:
                raise RequestError(400, "the body is not compressed as its Content-Encoding says") from cause
            self._produced += len(piece)
            if self._produced > self._max_bytes:
                raise RequestError(413, f"the decompressed body is longer than {self._max_bytes} bytes")
            pieces.append(piece)
            data = self._stream.unused_data
            if self._stream.eof:
                self._stream = None
        return b"".join(pieces)

    def check_ended(self) -> None:
        """Raise RequestError (400) if the stream is not at its end."""
        if self._stream is not None:
            raise RequestError(400, "the compressed body is cut off")

    def _begin(self, data: bytes) -> None:
        self._members += 1
        bits = self._bits
        if self._members > (_MAX_MEMBERS if bits == _CODINGS["gzip"] else 1):
            raise RequestError(400, "bytes follow the end of the compressed body")
        if bits == zlib.MAX_WBITS and data[0] & 0x0F != zlib.DEFLATED:  # zlib's header begins with its method
            bits = _RAW
        self._stream = zlib.decompressobj(bits)


def decoder_of(content_encoding: str, max_bytes: int) -> Decoder | None:
    """Return the decoder for a Content-Encoding, None if it names none; RequestError (415) for an unknown one, or several."""
    codings = [word for word in (part.strip().lower() for part in content_encoding.split(",")) if word not in ("", "identity")]
    if not codings:
        return None
    if len(codings) > 1 or codings[0] not in _CODINGS:
        message = f"the body has Content-Encoding {quoted(content_encoding)}: use gzip, deflate or none"
        raise RequestError(415, message, {"Accept-Encoding": "gzip, deflate"})
    return Decoder(codings[0], max_bytes)


class CompressionMiddleware:
    """ASGI middleware that compresses JSON responses with gzip if the client accepts it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Call the application, and compress its response."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        accepted = accepts_coding(Headers(scope=scope).getlist("accept-encoding"), "gzip")
        start: Message | None = None  # of a response that may be compressed, until its size is known
        packer: zlib._Compress | None = None

        async def answer(message: Message) -> None:
            nonlocal start, packer
            if message["type"] == "http.response.start":
                if Headers(raw=message["headers"]).get("content-type", "").startswith("application/json"):
                    MutableHeaders(scope=message).add_vary_header("Accept-Encoding")
                    start = message if accepted else None
                if start is None:
                    await send(message)
                return
            body, more = message.get("body", b""), message.get("more_body", False)
            begin, start = start, None
            if begin is not None and (more or len(body) >= _MIN_BYTES):
                packer = zlib.compressobj(_LEVEL, zlib.DEFLATED, _CODINGS["gzip"])
            if packer is not None:
                body = await asyncio.to_thread(_pack, packer, body, more)
                message = {**message, "body": body}
            if begin is not None:
                headers = MutableHeaders(scope=begin)
                if packer is not None:
                    headers["Content-Encoding"] = "gzip"
                    del headers["Content-Length"]
                    if not more:
                        headers["Content-Length"] = str(len(body))
                await send(begin)
            await send(message)

        await self._app(scope, receive, answer)


def _pack(packer: "zlib._Compress", body: bytes, more: bool) -> bytes:
    return packer.compress(body) + (b"" if more else packer.flush())
