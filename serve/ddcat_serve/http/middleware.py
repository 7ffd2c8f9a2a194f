"""What every request passes first: its id, its framing, the key, the rate of its client; at the end the log and the metrics."""

import asyncio
import ipaddress
import re
import time
from collections.abc import Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ddcat_serve.access import log_access, request_id
from ddcat_serve.errors import RequestError, quoted
from ddcat_serve.http.access_control import plain_address
from ddcat_serve.http.request_body import Share
from ddcat_serve.http.server_state import Context
from ddcat_serve.observe.metrics import Metrics

__all__ = ["Front"]

_OPEN = ("/", "/v2/health/live", "/v2/health/ready")  # the page asks for the key; orchestrators have none, and ask often
_HOST = re.compile(r"([A-Za-z0-9._~!$&'()*+,;=%-]*|\[[0-9A-Fa-f:.]+\])(?::[0-9]*)?")
_GUARDED = {  # of every answer, unless it has its own: none of them is a page that loads anything
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}


class Front:
    """
    ASGI middleware.

    Parameters
    ----------
    app : ASGI application
    context : Context
    metrics : Metrics
    hosts : sequence of str, optional
        Names with a dot in Host that are answered, with all below them; any where there are none.
    """

    def __init__(self, app: ASGIApp, context: Context, metrics: Metrics, hosts: Sequence[str] = ()) -> None:
        self._app, self._context, self._metrics = app, context, metrics
        self._hosts = frozenset(host.lower() for host in hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or let the application answer."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        headers = Headers(scope=scope)
        identity = request_id(headers.get("x-request-id", ""))
        client = plain_address((scope.get("client") or ("unknown", 0))[0])
        room = Share(self._context.room)
        scope.setdefault("state", {}).update(request_id=identity, room=room)
        asked = {**scope, "path": _path(scope["path"])}
        if scope["method"] == "HEAD":  # is answered like GET; the server below leaves the body out
            asked["method"] = "GET"
        status, begun = 500, False

        async def read() -> Message:
            message = await receive()
            room.take(len(message.get("body", b"")))
            return message

        async def answer(message: Message) -> None:
            nonlocal status, begun
            if message["type"] == "http.response.start":
                status, begun = message["status"], True
                written = MutableHeaders(scope=message)
                written["X-Request-Id"] = identity
                for name, value in _GUARDED.items():
                    written.setdefault(name, value)
            await send(message)

        error = _fault(scope, headers, self._hosts)
        if error is None and asked["path"] not in _OPEN:
            error = self._context.guard.refusal(headers.getlist("authorization"), client)
        refusal = None if error is None else JSONResponse({"error": str(error)}, error.status, error.headers)
        try:
            await (self._app if refusal is None else refusal)(asked, read, answer)
        except asyncio.CancelledError:  # by uvicorn, where the drain ends before the answer is there
            if begun:
                raise
            stopped = JSONResponse({"error": "the server is stopping: use another one"}, 503, {"Connection": "close"})
            await stopped(asked, receive, answer)
        finally:
            room.give_back()
            seconds = time.perf_counter() - began
            route = getattr(asked.get("route"), "path", "none")
            self._metrics.count_request(route, scope["method"], status, seconds)
            log_access(identity, client=client, method=scope["method"], path=scope["path"], status=status, seconds=seconds)


def _path(path: str) -> str:
    """Return the path of a route: the protocol's own documents end some of its paths with a slash."""
    return path[:-1] if path.startswith("/v2/") and path.endswith("/") else path


def _fault(scope: Scope, headers: Headers, hosts: frozenset[str]) -> RequestError | None:
    """Say what is wrong with how a request is framed and addressed (RFC 9112, 3.2 and 6.1), or None."""
    coded = headers.getlist("transfer-encoding")
    if coded and [value.strip().lower() for value in coded] != ["chunked"]:
        return RequestError(501, "expected no Transfer-Encoding but chunked", {"Connection": "close"})
    named = headers.getlist("host")
    if len(named) > 1 or (not named and scope["http_version"] == "1.1"):
        return RequestError(400, f"expected one Host header, got {len(named)}", {"Connection": "close"})
    if not named:
        return None
    found = _HOST.fullmatch(named[0].strip())
    if found is None:
        return RequestError(400, "the Host header is not a valid host", {"Connection": "close"})
    host = found[1].lower().rstrip(".")
    if not hosts or "." not in host or _is_address(host) or any(f".{host}".endswith(f".{name}") for name in hosts):
        return None
    # whoever owns a public name can point it at this machine: a page of theirs would be answered as if it were ours
    message = f"this server does not answer to the Host {quoted(host)}: name it with --allowed-hosts"
    return RequestError(421, message, {"Connection": "close"})


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    return True
