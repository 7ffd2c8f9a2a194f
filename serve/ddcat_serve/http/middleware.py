"""Middleware for every request: ID, framing checks, API key and rate limit, then log and metrics."""

import asyncio
import ipaddress
import re
import time
from collections.abc import Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ddcat_serve.errors import RequestError, quoted
from ddcat_serve.http.access_control import plain_address
from ddcat_serve.http.byte_budget import HeldBytes
from ddcat_serve.http.server_state import ServerState
from ddcat_serve.observe.json_logging import log_access, request_id
from ddcat_serve.observe.metrics import Metrics

__all__ = ["RequestMiddleware"]

_OPEN = ("/", "/v2/health/live", "/v2/health/ready")  # need no key: the page asks for it, and orchestrators have none
_HOST = re.compile(r"([A-Za-z0-9._~!$&'()*+,;=%-]*|\[[0-9A-Fa-f:.]+\])(?::[0-9]*)?")
_SECURITY_HEADERS = {  # of every response that does not set its own: none of them is a page that loads anything
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}


class RequestMiddleware:
    """
    ASGI middleware that identifies, checks, logs and counts every request.

    `hosts` are the accepted domain names in the Host header, with their subdomains; none: any. Names without a dot are always
    accepted.
    """

    def __init__(self, app: ASGIApp, state: ServerState, metrics: Metrics, hosts: Sequence[str] = ()) -> None:
        self._app, self._state, self._metrics = app, state, metrics
        self._hosts = frozenset(host.lower() for host in hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Respond to a faulty request, or call the application."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        headers = Headers(scope=scope)
        identity = request_id(headers.get("x-request-id", ""))
        client = plain_address((scope.get("client") or ("unknown", 0))[0])
        held = HeldBytes(self._state.byte_budget)
        scope.setdefault("state", {}).update(request_id=identity, held_bytes=held)
        routed = {**scope, "path": _path(scope["path"])}
        if scope["method"] == "HEAD":  # handled as GET; uvicorn drops the body
            routed["method"] = "GET"
        status, begun = 500, False

        async def read() -> Message:
            message = await receive()
            held.take(len(message.get("body", b"")))
            return message

        async def answer(message: Message) -> None:
            nonlocal status, begun
            if message["type"] == "http.response.start":
                status, begun = message["status"], True
                written = MutableHeaders(scope=message)
                written["X-Request-Id"] = identity
                for name, value in _SECURITY_HEADERS.items():
                    written.setdefault(name, value)
            await send(message)

        error = _fault(scope, headers, self._hosts)
        if error is None and routed["path"] not in _OPEN:
            error = self._state.access_control.refusal(headers.getlist("authorization"), client)
        refusal = None if error is None else JSONResponse({"error": str(error)}, error.status, error.headers)
        try:
            await (self._app if refusal is None else refusal)(routed, read, answer)
        except asyncio.CancelledError:  # by uvicorn, if the drain ends before the response has begun
            if begun:
                raise
            stopped = JSONResponse({"error": "the server is stopping: use another one"}, 503, {"Connection": "close"})
            await stopped(routed, receive, answer)
        finally:
            held.give_back()
            seconds = time.perf_counter() - began
            route = getattr(routed.get("route"), "path", "none")
            self._metrics.count_request(route, scope["method"], status, seconds)
            log_access(identity, client=client, method=scope["method"], path=scope["path"], status=status, seconds=seconds)


def _path(path: str) -> str:
    """Return the path without a trailing slash: the protocol's own documents end some paths with one."""
    return path[:-1] if path.startswith("/v2/") and path.endswith("/") else path


def _fault(scope: Scope, headers: Headers, hosts: frozenset[str]) -> RequestError | None:
    """Return the fault in a request's framing or Host (RFC 9112, 3.2 and 6.1), or None."""
    coded = headers.getlist("transfer-encoding")
    if coded and [value.strip().lower() for value in coded] != ["chunked"]:
        return RequestError(501, "expected no Transfer-Encoding but chunked", {"Connection": "close"})
    named = headers.getlist("host")
    if len(named) > 1 or (not named and scope["http_version"] == "1.1"):
        return RequestError(400, f"expected one Host header, got {len(named)}", {"Connection": "close"})
    if not named:
        return None
    match = _HOST.fullmatch(named[0].strip())
    if match is None:
        return RequestError(400, "the Host header is not a valid host", {"Connection": "close"})
    host = match[1].lower().rstrip(".")
    if not hosts or "." not in host or _is_address(host) or any(f".{host}".endswith(f".{name}") for name in hosts):
        return None
    # DNS rebinding: the owner of a public name can point it at this machine, and a page of theirs could call this server
    message = f"this server does not answer to the Host {quoted(host)}: name it with --allowed-hosts"
    return RequestError(421, message, {"Connection": "close"})


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    return True
