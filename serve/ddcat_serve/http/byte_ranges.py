"""A file as a response, of which a client may ask for parts, or only if it has changed."""

from starlette.datastructures import Headers
from starlette.responses import FileResponse
from starlette.staticfiles import NotModifiedResponse, StaticFiles
from starlette.types import Message, Receive, Scope, Send

from ddcat_serve.errors import RequestError

__all__ = ["RangedFile"]


class RangedFile(FileResponse):
    """
    A file or, by the request's Range header, parts of it; 304 if the client has it already, by its ETag or its date.

    A Range that is faulty or of another unit is ignored (RFC 9110, 14.2); one beyond the file's end gets a 416 in the form of
    all errors. Starlette answers both in plain text.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Respond."""
        if StaticFiles().is_not_modified(self.headers, Headers(scope=scope)):
            await NotModifiedResponse(self.headers)(scope, receive, send)
            return
        refused = 0

        async def unless_refused(message: Message) -> None:
            nonlocal refused
            if message["type"] == "http.response.start" and message["status"] in (400, 416):
                refused = message["status"]
            if not refused:
                await send(message)

        await super().__call__(scope, receive, unless_refused)
        if refused == 400:
            whole = [(name, value) for name, value in scope["headers"] if name != b"range"]
            await super().__call__({**scope, "headers": whole}, receive, send)
        elif refused:
            size = self.headers["content-length"]
            message = f"the file has {size} bytes, and the Range is not within them"
            raise RequestError(refused, message, {"Content-Range": f"bytes */{size}"})
