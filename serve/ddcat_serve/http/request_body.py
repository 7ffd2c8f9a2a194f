"""Reading the bodies of requests, never more than the limit, and never longer than it may take."""

import asyncio
from collections.abc import AsyncGenerator
from typing import NamedTuple

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from ddcat_serve.errors import RequestError, quoted
from ddcat_serve.http.byte_budget import Room
from ddcat_serve.http.compression import decoder_of

__all__ = ["Share", "Upload", "Uploads", "read_body", "read_images"]

_MOST_FILES = 64


class Upload(NamedTuple):
    """A file of a request."""

    filename: str | None
    content: bytes


class Uploads(NamedTuple):
    """All files of a request; `single`: it is answered with one mask, and not with a list."""

    files: list[Upload]
    single: bool


class Share:
    """
    Bytes of bodies that one request holds; whoever makes it gives it back.

    Parameters
    ----------
    room : Room
        For all requests together.
    """

    def __init__(self, room: Room) -> None:
        self._room, self._size = room, 0

    def take(self, size: int) -> None:
        """Hold more bytes; raise RequestError, 503 with Retry-After, where all requests together would hold too many."""
        if not self._room.take_now(size):
            message = "the requests in progress hold as many bytes as the server keeps at once: try again in 1 s"
            raise RequestError(503, message, {"Retry-After": "1"})
        self._size += size

    def give_back(self) -> None:
        """Hold nothing any more."""
        self._room.give(self._size)
        self._size = 0


async def read_body(request: Request, *, max_bytes: int, timeout: float) -> bytes:
    """
    Read a body.

    Raises
    ------
    RequestError
        408 after `timeout` seconds, 413 as soon as it is known to be longer than `max_bytes`, compressed or decompressed, 415
        for a Content-Encoding other than gzip and deflate, 503 where the bodies of all requests would be too long together.
    """
    decoder = decoder_of(",".join(request.headers.getlist("content-encoding")), max_bytes)
    too_long = RequestError(413, f"the body is longer than {max_bytes} bytes")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > max_bytes:
        raise too_long
    body = bytearray()
    received = 0
    try:
        async with asyncio.timeout(timeout):
            async for chunk in request.stream():
                received += len(chunk)
                if received > max_bytes:
                    raise too_long
                if decoder is not None:
                    chunk = await asyncio.to_thread(decoder.feed, chunk)  # noqa: PLW2901
                    request.state.room.take(len(chunk))
                body += chunk
    except TimeoutError as cause:
        raise RequestError(408, f"the body did not come within {timeout:g} s", {"Connection": "close"}) from cause
    if decoder is not None:
        decoder.check_ended()
    return bytes(body)


async def read_images(request: Request, *, max_bytes: int, timeout: float) -> Uploads:
    """Read the files of a multipart/form-data body, or the whole body where it is none; errors as for `read_body`, or 400."""
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
        raise RequestError(400, "the form is cut off: its closing boundary does not come")
    if not uploads:
        raise RequestError(400, "the form holds no file: send each image as a part with a filename")
    return Uploads(uploads, single=len(uploads) == 1)


class _Files(MultiPartParser):
    """Reads a form of files alone, and keeps them in memory: all of it is there already."""

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
            message = f"the part {quoted(part.field_name)} has no filename: give it one where it is an image; "
            raise RequestError(400, f"{message}model, version and timeout go into the query, as in /v1/segment?model=NAME")
        self.files.append(part.file)

    def on_end(self) -> None:
        self.ended = True
