"""The HTTP application: masks for people, the Open Inference Protocol for programs; its parts are put together here."""

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

from ddcat import __version__
from ddcat.engines.errors import EngineError, InputError
from ddcat.error_text import first_validation_error
from ddcat_serve.errors import RequestError
from ddcat_serve.http import segment_route, v2_routes, web_ui
from ddcat_serve.http.access_control import Guard
from ddcat_serve.http.byte_budget import Room
from ddcat_serve.http.compression import Compression
from ddcat_serve.http.middleware import Front
from ddcat_serve.http.server_state import ERRORS, PROVENANCE, Context
from ddcat_serve.inference.memory import give_back_free_blocks, memory_size, resident
from ddcat_serve.inference.model_registry import Models
from ddcat_serve.observe.metrics import CONTENT_TYPE, Metrics
from ddcat_serve.observe.tracing import trace
from ddcat_serve.settings import Settings

__all__ = ["create_app"]

_TIDIES_EVERY = 10.0  # seconds
_WORTH_IT = 2**23  # bytes

_log = logging.getLogger(__name__)


def create_app(models: Models, settings: Settings, metrics: Metrics | None = None, *, hosts: Sequence[str] = ()) -> FastAPI:
    """
    Make the application.

    Parameters
    ----------
    models : Models
        Loaded, and closed by whoever loaded them.
    settings : Settings
    metrics : Metrics, optional
        That batches are counted in.
    hosts : sequence of str, optional
        Domain names in Host that are answered; any by default.

    Returns
    -------
    FastAPI
        Its `state.context` is what the routes share.

    Raises
    ------
    ServeError
        Where the environment asks for tracing that cannot be.
    """
    pool = ThreadPoolExecutor(settings.decoders, thread_name_prefix="decode")
    counted = metrics or Metrics()
    context = Context(models, settings, Guard(settings), pool, counted, Room(_room(settings)))
    counted.watch(context)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        tidying = asyncio.create_task(_give_back_memory())
        yield
        tidying.cancel()
        pool.shutdown(cancel_futures=True)

    app = FastAPI(
        title="ddcat",
        version=__version__,
        summary="Semantic segmentation by engines whose robustness was judged.",
        lifespan=lifespan,
        servers=[{"url": "."}],  # where the description lies, which behind a proxy may be under a prefix
        openapi_url=None,  # written once below, not for each request: it takes as long as a small image
        docs_url=None,  # its page loads scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.context = context
    _answer_errors(app)
    app.include_router(segment_route.router(context))
    app.include_router(v2_routes.router(context))
    app.include_router(web_ui.router(context))

    @app.get("/metrics", response_class=Response, tags=["Operation"], responses=ERRORS)
    async def read_metrics() -> Response:
        """Metrics in Prometheus' text format."""
        return Response(counted.text(), media_type=CONTENT_TYPE)

    description = functools.cache(lambda: JSONResponse(app.openapi()).body)

    @app.get("/openapi.json", include_in_schema=False)
    async def describe() -> Response:
        return Response(description(), media_type="application/json")

    app.add_middleware(Compression)
    app.add_middleware(Front, context=context, metrics=counted, hosts=hosts)
    if settings.cors_origins:  # the last one is the first to see a request: a browser's preflight carries no key
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.cors_origins),
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=["Retry-After", "X-Request-Id", "X-Ddcat-Shape", *PROVENANCE],
        )
    trace(app)
    return app


async def _give_back_memory() -> None:
    """Return what bursts of requests have left, a little later; it takes milliseconds."""
    least = resident()
    while True:
        await asyncio.sleep(_TIDIES_EVERY)
        if resident() > least + _WORTH_IT:
            await asyncio.to_thread(give_back_free_blocks)
        least = min(least, resident())


def _room(settings: Settings) -> int:
    """Return the most bytes of all bodies together; one always fits."""
    if settings.queue_bytes is not None:
        return max(settings.queue_bytes, settings.max_bytes)
    return max(settings.max_bytes, min(8 * settings.max_bytes, memory_size() // 4))


def _answer_errors(app: FastAPI) -> None:
    """Answer every error as the protocol's clients expect it: {"error": what is wrong}."""

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
        right = "; openapi.json lists what there is" if error.status_code == 404 else ""
        path = request.scope["path"]
        where = path if len(path) <= 100 else f"{path[:97]}..."
        return answer(error.status_code, f"{request.method} {where}: {error.detail}{right}", error.headers)

    @app.exception_handler(RequestValidationError)
    async def wrong_parameter(request: Request, error: RequestValidationError) -> Response:
        return answer(400, first_validation_error(error))

    @app.exception_handler(ClientDisconnect)
    async def gone(request: Request, error: ClientDisconnect) -> Response:
        return answer(499, "the client went away")

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        return answer(500, f"the server failed; its log says why under request {request.state.request_id}")
