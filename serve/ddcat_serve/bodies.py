"""Reading the bodies of requests, never more than the limit, and never longer than it may take."""

import asyncio
from collections.abc import AsyncGenerator
from typing import NamedTuple

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from ddcat_serve.errors import RequestError

__all__ = ["Upload", "Uploads", "read_body", "read_images"]

_MOST_FILES = 64


class Upload(NamedTuple):
    """A file of a request."""

    filename: str | None
    content: bytes


class Uploads(NamedTuple):
    """All files of a request; `single`: it is answered with one mask, and not with a list."""

    files: list[Upload]
    single: bool


async def read_body(request: Request, *, max_bytes: int, timeout: float) -> bytes:
    """
    Read a body.

    Raises
    ------
    RequestError
        408 after `timeout` seconds, 413 as soon as it is known to be longer than `max_bytes`, 415 for a compressed body.
    """
    encoding = request.headers.get("content-encoding", "identity")
    if encoding != "identity":
        raise RequestError(415, f"the body has Content-Encoding {encoding!r}: send it as it is")
    too_long = RequestError(413, f"the body is longer than {max_bytes} bytes")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > max_bytes:
        raise too_long
    body = bytearray()
    try:
        async with asyncio.timeout(timeout):
            async for chunk in request.stream():
                body += chunk
                if len(body) > max_bytes:
                    raise too_long
    except TimeoutError as cause:
        raise RequestError(408, f"the body did not come within {timeout:g} s", {"Connection": "close"}) from cause
    return bytes(body)


async def read_images(request: Request, *, max_bytes: int, timeout: float) -> Uploads:
    """Read the files of a multipart/form-data body, or the whole body where it is none; errors as for `read_body`, or 400."""
    body = await read_body(request, max_bytes=max_bytes, timeout=timeout)
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        return Uploads([Upload(None, body)], single=True)

    async def stream() -> AsyncGenerator[bytes, None]:
        yield body

    parser = MultiPartParser(request.headers, stream(), max_files=_MOST_FILES, max_fields=0, max_part_size=max_bytes)
    try:
        form = await parser.parse()
    except (MultiPartException, KeyError, ValueError) as cause:  # KeyError: no boundary
        raise RequestError(400, f"the multipart body is not of files alone: {cause}") from cause
    try:
        files = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
        if not files:
            raise RequestError(400, "the multipart body is not of files alone: it holds none, or is cut off")
        uploads = [Upload(file.filename, await file.read()) for file in files]
        return Uploads(uploads, single=len(uploads) == 1)
    finally:
        await form.close()
