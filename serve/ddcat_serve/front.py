"""What every request passes first: its id, the key, the rate of its client; and at the end the log and the metrics."""

import asyncio
import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ddcat_serve.access import log_access, request_id
from ddcat_serve.guard import Guard
from ddcat_serve.metrics import Metrics

__all__ = ["Front"]

_OPEN = ("/", "/v2/health/live", "/v2/health/ready")  # the page asks for the key; orchestrators have none, and ask often


class Front:
    """
    ASGI middleware.

    Parameters
    ----------
    app : ASGI application
    guard : Guard
    metrics : Metrics
    """

    def __init__(self, app: ASGIApp, guard: Guard, metrics: Metrics) -> None:
        self._app, self._guard, self._metrics = app, guard, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or let the application answer."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        headers = Headers(scope=scope)
        identity = request_id(headers.get("x-request-id", ""))
        scope.setdefault("state", {})["request_id"] = identity
        # no route is told of HEAD: it is answered like GET, and the server below leaves the body out
        asked = {**scope, "method": "GET"} if scope["method"] == "HEAD" else scope
        status, begun = 500, False

        async def answer(message: Message) -> None:
            nonlocal status, begun
            if message["type"] == "http.response.start":
                status, begun = message["status"], True
                MutableHeaders(scope=message)["X-Request-Id"] = identity
            await send(message)

        client = (scope.get("client") or ("unknown", 0))[0]
        error = None if scope["path"] in _OPEN else self._guard.refusal(headers.getlist("authorization"), client)
        refusal = None if error is None else JSONResponse({"error": str(error)}, error.status, error.headers)
        try:
            await (self._app if refusal is None else refusal)(asked, receive, answer)
        except asyncio.CancelledError:  # by uvicorn, where the drain ends before the answer is there
            if begun:
                raise
            stopped = JSONResponse({"error": "the server stops: ask another one"}, 503, {"Connection": "close"})
            await stopped(asked, receive, answer)
        finally:
            seconds = time.perf_counter() - began
            route = getattr(asked.get("route"), "path", "none")
            self._metrics.count_request(route, scope["method"], status, seconds)
            log_access(identity, client=client, method=scope["method"], path=scope["path"], status=status, seconds=seconds)
