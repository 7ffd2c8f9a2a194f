"""Reading request bodies, within limits of size and time."""

import asyncio
from collections.abc import AsyncGenerator
from typing import NamedTuple

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from ddcat_serve.errors import RequestError, quoted
from ddcat_serve.http.compression import decoder_of

__all__ = ["Upload", "Uploads", "body_pieces", "read_body", "read_images"]

_MOST_FILES = 64


class Upload(NamedTuple):
    """An uploaded file."""

    filename: str | None
    content: bytes


class Uploads(NamedTuple):
    """All files of a request; `single`: the response is one mask instead of a list."""

    files: list[Upload]
    single: bool


async def body_pieces(request: Request, *, max_bytes: int) -> AsyncGenerator[bytes, None]:
    """Yield the body of a request piece by piece, decompressed; errors as `read_body`, but for the time."""
    decoder = decoder_of(",".join(request.headers.getlist("content-encoding")), max_bytes)
    too_long = RequestError(413, f"the body is longer than {max_bytes} bytes")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > max_bytes:
        raise too_long
    received = 0
    async for chunk in request.stream():
        received += len(chunk)
        if received > max_bytes:
            raise too_long
        if decoder is not None:
            chunk = await asyncio.to_thread(decoder.feed, chunk)  # noqa: PLW2901
            request.state.held_bytes.take(len(chunk))
        yield chunk
    if decoder is not None:
        decoder.check_ended()


async def read_body(request: Request, *, max_bytes: int, timeout: float) -> bytes:
    """
    Read the body of a request.

    RequestError: 408 after `timeout` seconds; 413 as soon as it is longer than `max_bytes`, compressed or decompressed; 415 for
    a Content-Encoding other than gzip and deflate; 503 if the bodies of all requests together are too long.
    """
    body = bytearray()
    try:
        async with asyncio.timeout(timeout):
            async for piece in body_pieces(request, max_bytes=max_bytes):
                body += piece
    except TimeoutError as cause:
        raise RequestError(408, f"the body did not arrive within {timeout:g} s", {"Connection": "close"}) from cause
    return bytes(body)


async def read_images(request: Request, *, max_bytes: int, timeout: float) -> Uploads:
    """Read the files of a multipart/form-data body, or any other body as one file; errors as `read_body`, or 400."""
    body = await read_body(request, max_bytes=max_bytes, timeout=timeout)
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        return Uploads([Upload(None, body)], single=True)
    parser = _Files(request, body)
    try:
        await parser.parse()
        uploads = [Upload(file.filename, await file.read()) for file in parser.files]
    except (MultiPartException, KeyError, ValueError) as cause:  # KeyError: no boundary
        raise RequestError(400, f"the form cannot be read: {cause}") from cause
    finally:
        for file in parser.files:
            await file.close()
    if not parser.ended:
        raise RequestError(400, "the form is cut off: its closing boundary is missing")
    if not uploads:
        raise RequestError(400, "the form holds no file: send each image as a part with a filename")
    return Uploads(uploads, single=len(uploads) == 1)


class _Files(MultiPartParser):
    """Parses a form of files, and keeps them in memory: the whole body is there already."""

    def __init__(self, request: Request, body: bytes) -> None:
        async def stream() -> AsyncGenerator[bytes, None]:
            yield body

        super().__init__(request.headers, stream(), max_files=_MOST_FILES)
        self.spool_max_size = len(body)
        self.files: list[UploadFile] = []
        self.ended = False

    def on_headers_finished(self) -> None:
        super().on_headers_finished()
        part = self._current_part
        if part.file is None:
            message = f"the part {quoted(part.field_name)} has no filename: give it one if it is an image; "
            raise RequestError(400, f"{message}model, version and timeout go into the query, as in /v1/segment?model=NAME")
        self.files.append(part.file)

    def on_end(self) -> None:
        self.ended = True
