"""The HTTP application: its routes, middleware, error responses and lifespan."""

import asyncio
import contextlib
import functools
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Match

from ddcat import __version__
from ddcat.engines.errors import EngineError, InputError
from ddcat.error_text import first_validation_error
from ddcat_serve.errors import RequestError
from ddcat_serve.http import job_routes, repository_routes, segment_route, v2_routes, web_ui
from ddcat_serve.http.access_control import AccessControl
from ddcat_serve.http.byte_budget import ByteBudget
from ddcat_serve.http.compression import CompressionMiddleware
from ddcat_serve.http.job_runner import JobRunner
from ddcat_serve.http.middleware import RequestMiddleware
from ddcat_serve.http.model_metrics import collect
from ddcat_serve.http.server_state import ERRORS, PROVENANCE_HEADERS, ServerState
from ddcat_serve.inference.memory import memory_limit, resident_bytes, trim_malloc
from ddcat_serve.inference.model_registry import Models
from ddcat_serve.inference.repository import Repository
from ddcat_serve.inference.watching import watch
from ddcat_serve.observe.metrics import CONTENT_TYPE, Metrics
from ddcat_serve.observe.tracing import trace
from ddcat_serve.settings import Settings

__all__ = ["create_app"]

_TRIM_INTERVAL = 10.0  # seconds
_TRIM_THRESHOLD = 2**23  # bytes

_log = logging.getLogger(__name__)


def create_app(
    models: Models,
    settings: Settings,
    metrics: Metrics | None = None,
    *,
    hosts: Sequence[str] = (),
    repository: Repository | None = None,
    jobs: JobRunner | None = None,
) -> FastAPI:
    """
    Create the application; its `state.server_state` is shared by the routes.

    The caller closes `models`, their `repository` if they may change, and `jobs`. `metrics` are those that count the engines'
    batches, by default new ones; `hosts` are the domain names accepted in the Host header, by default any.

    Raises
    ------
    ServeError
        If the environment asks for tracing and OpenTelemetry is not installed.
    """
    pool, cutters = (ThreadPoolExecutor(settings.codec_threads, thread_name_prefix=name) for name in ("decode", "cut"))
    counted = metrics or Metrics()
    budget = ByteBudget(_budget_size(settings))
    state = ServerState(models, settings, AccessControl(settings), pool, cutters, counted, budget, repository, jobs)
    counted.watch(functools.partial(collect, state))

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(_trim_memory())]
        if repository is not None and settings.watch:
            tasks.append(asyncio.create_task(watch(repository)))
        yield
        for task in tasks:
            task.cancel()
        cutters.shutdown(wait=False, cancel_futures=True)  # they wait for engines, which may hang
        pool.shutdown(cancel_futures=True)

    app = FastAPI(
        title="ddcat",
        version=__version__,
        summary="Semantic segmentation by engines with tested robustness.",
        lifespan=lifespan,
        servers=[{"url": "."}],  # relative to the description itself, which a proxy may serve under a prefix
        openapi_url=None,  # written once, below: for each request it would take as long as a small image
        docs_url=None,  # its page loads scripts from other sites
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.server_state = state
    _answer_errors(app)
    app.include_router(segment_route.router(state))
    app.include_router(job_routes.router(state))
    app.include_router(v2_routes.router(state))
    app.include_router(repository_routes.router(state))
    app.include_router(web_ui.router(state))

    @app.get("/metrics", response_class=Response, tags=["Operation"], responses=ERRORS)
    async def read_metrics() -> Response:
        """Metrics in Prometheus' text format."""
        return Response(counted.text(), media_type=CONTENT_TYPE)

    description = functools.cache(lambda: JSONResponse(app.openapi()).body)

    @app.get("/openapi.json", include_in_schema=False)
    async def describe() -> Response:
        return Response(description(), media_type="application/json")

    app.add_middleware(CompressionMiddleware)
    app.add_middleware(RequestMiddleware, state=state, metrics=counted, hosts=hosts)
    if settings.cors_origins:  # the middleware added last runs first: a browser's preflight carries no key
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.cors_origins),
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=["Location", "Retry-After", "X-Request-Id", "X-Ddcat-Shape", *PROVENANCE_HEADERS],
        )
    trace(app)
    return app


async def _trim_memory() -> None:
    """Return freed memory to the system some time after a burst of requests; a call takes milliseconds."""
    least = resident_bytes()
    while True:
        await asyncio.sleep(_TRIM_INTERVAL)
        if resident_bytes() > least + _TRIM_THRESHOLD:
            await asyncio.to_thread(trim_malloc)
        least = min(least, resident_bytes())


def _budget_size(settings: Settings) -> int:
    """Return the byte limit for the bodies of all requests together; one body always fits."""
    if settings.queue_bytes is not None:
        return max(settings.queue_bytes, settings.max_bytes)
    return max(settings.max_bytes, min(8 * settings.max_bytes, memory_limit() // 4))


def _methods_at(request: Request) -> str:
    """Return the methods of all routes of a path: the error knows those of the first."""

    def taken(method: str) -> bool:
        scope = {**request.scope, "method": "GET" if method == "HEAD" else method}  # as `RequestMiddleware` does
        return any(route.matches(scope)[0] == Match.FULL for route in request.app.routes)

    return ", ".join(method for method in ("DELETE", "GET", "HEAD", "PATCH", "POST", "PUT") if taken(method))


def _answer_errors(app: FastAPI) -> None:
    """Respond to every error in the protocol's form, {"error": message}."""

    def answer(status: int, message: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
        return JSONResponse({"error": message}, status, headers)

    @app.exception_handler(RequestError)
    async def refused(request: Request, error: RequestError) -> Response:
        return answer(error.status, str(error), error.headers)

    @app.exception_handler(InputError)
    async def not_taken(request: Request, error: InputError) -> Response:
        return answer(400, str(error))

    @app.exception_handler(EngineError)
    async def engine_failed(request: Request, error: EngineError) -> Response:
        _log.error("%s %s, request %s: %s", request.method, request.url.path, request.state.request_id, error)
        return answer(500, f"the engine failed; the server's log says why under request {request.state.request_id}")

    @app.exception_handler(HTTPException)
    async def no_route(request: Request, error: HTTPException) -> Response:
        hint = "; see openapi.json for the routes" if error.status_code == 404 else ""
        path = request.scope["path"]
        shown = path if len(path) <= 100 else f"{path[:97]}..."
        headers = {"Allow": _methods_at(request)} if error.status_code == 405 else error.headers
        return answer(error.status_code, f"{request.method} {shown}: {error.detail}{hint}", headers)

    @app.exception_handler(RequestValidationError)
    async def wrong_parameter(request: Request, error: RequestValidationError) -> Response:
        return answer(400, first_validation_error(error))

    @app.exception_handler(ClientDisconnect)
    async def gone(request: Request, error: ClientDisconnect) -> Response:
        return answer(499, "the client disconnected")

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        return answer(500, f"the server failed; its log says why under request {request.state.request_id}")
