"""What every request passes first: its id, the key, the rate of its client; and at the end the log and the metrics."""

import hmac
import json
import logging
import re
import time
import uuid
from collections.abc import Sequence

from limits import parse
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ddcat_serve.metrics import Metrics
from ddcat_serve.settings import Settings

__all__ = ["ACCESS", "Front"]

ACCESS = "ddcat_serve.access"  # the logger: a JSON object for each request
_OPEN = ("/v2/health/live", "/v2/health/ready")  # orchestrators have no key, and ask often
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_log = logging.getLogger(ACCESS)


class Front:
    """
    ASGI middleware.

    Parameters
    ----------
    app : ASGI application
    settings : Settings
    metrics : Metrics
    """

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics
        self._key = None if settings.api_key is None else settings.api_key.get_secret_value().encode()
        self._limiter = MovingWindowRateLimiter(MemoryStorage())
        self._limit = None if settings.rate_limit is None else parse(settings.rate_limit)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or let the application answer."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        headers = Headers(scope=scope)
        sent = headers.get("x-request-id", "")
        identity = sent if _ID.fullmatch(sent) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = identity
        status = 500

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-Id"] = identity
            await send(message)

        client = (scope.get("client") or ("unknown", 0))[0]
        refusal = None if scope["path"] in _OPEN else self._refusal(headers, client)
        try:
            await (self._app if refusal is None else refusal)(scope, receive, answer)
        finally:
            seconds = time.perf_counter() - began
            route = getattr(scope.get("route"), "path", "none")
            self._metrics.count_request(route, scope["method"], status, seconds)
            _log.info(
                json.dumps(
                    {
                        "request_id": identity,
                        "client": client,
                        "method": scope["method"],
                        "path": scope["path"],
                        "status": status,
                        "ms": round(1000 * seconds, 1),
                    }
                )
            )

    def _refusal(self, headers: Headers, client: str) -> JSONResponse | None:
        if self._key is not None and not self._has_key(headers.getlist("authorization")):
            message = "the API key is missing or another one: send Authorization: Bearer KEY"
            return JSONResponse({"error": message}, 401, {"WWW-Authenticate": "Bearer"})
        if self._limit is not None and not self._limiter.hit(self._limit, client):
            reset, _ = self._limiter.get_window_stats(self._limit, client)
            seconds = max(1, round(reset - time.time()))
            message = f"more than {self._limit} from this client: try again in {seconds} s"
            return JSONResponse({"error": message}, 429, {"Retry-After": str(seconds)})
        return None

    def _has_key(self, values: Sequence[str]) -> bool:
        if len(values) != 1:
            return False
        kind, _, key = values[0].partition(" ")
        return kind.lower() == "bearer" and hmac.compare_digest(key.strip().encode(), self._key or b"")
