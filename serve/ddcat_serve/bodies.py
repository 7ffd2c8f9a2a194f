"""Reading the bodies of requests, never more than the limit."""

from collections.abc import AsyncGenerator

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from ddcat_serve.errors import RequestError

__all__ = ["read_body", "read_image"]


async def read_body(request: Request, *, max_bytes: int) -> bytes:
    """
    Read a body.

    Raises
    ------
    RequestError
        413 as soon as it is known to be longer than `max_bytes`, 415 for a compressed body.
    """
    encoding = request.headers.get("content-encoding", "identity")
    if encoding != "identity":
        raise RequestError(415, f"the body has Content-Encoding {encoding!r}: send it as it is")
    too_long = RequestError(413, f"the body is longer than {max_bytes} bytes")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > max_bytes:
        raise too_long
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > max_bytes:
            raise too_long
    return bytes(body)


async def read_image(request: Request, *, max_bytes: int) -> bytes:
    """Read the file of a multipart/form-data body, or the whole body where it is none; errors as for `read_body`, or 400."""
    body = await read_body(request, max_bytes=max_bytes)
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        return body

    async def stream() -> AsyncGenerator[bytes, None]:
        yield body

    parser = MultiPartParser(request.headers, stream(), max_files=1, max_fields=0, max_part_size=max_bytes)
    try:
        form = await parser.parse()
    except (MultiPartException, KeyError, ValueError) as cause:  # KeyError: no boundary
        raise RequestError(400, f"the multipart body is not one file: {cause}") from cause
    try:
        files = [value for value in form.values() if isinstance(value, UploadFile)]
        if not files:
            raise RequestError(400, "the multipart body is not one file: it holds none, or is cut off")
        return await files[0].read()
    finally:
        await form.close()
