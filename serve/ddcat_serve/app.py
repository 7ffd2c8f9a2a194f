"""The HTTP server: masks for people, the Open Inference Protocol for programs."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from ddcat import __version__
from ddcat_serve import protocol
from ddcat_serve.bodies import read_body, read_image
from ddcat_serve.errors import EngineError, InputError, RequestError
from ddcat_serve.images import decode, encode_mask
from ddcat_serve.models import ServedModel
from ddcat_serve.settings import Settings

__all__ = ["create_app"]

_DECODERS = 4  # threads that decode images and encode masks, beside those of the engines
_IMAGE_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "image/jpeg": {"schema": {"type": "string", "format": "binary"}},
            "image/png": {"schema": {"type": "string", "format": "binary"}},
            "multipart/form-data": {
                "schema": {"type": "object", "properties": {"image": {"type": "string", "format": "binary"}}}
            },
        },
    }
}


def create_app(models: Mapping[str, ServedModel], settings: Settings) -> FastAPI:
    """
    Make the application.

    Parameters
    ----------
    models : mapping of str to ServedModel
        By name; loaded, and closed by whoever loaded them.
    settings : Settings
        Limits on what is taken in.
    """
    pool = ThreadPoolExecutor(_DECODERS, thread_name_prefix="decode")

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        pool.shutdown()

    app = FastAPI(title="ddcat", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None, redirect_slashes=False)
    _answer_errors(app)
    _add_protocol(app, models, settings, pool)

    @app.post("/v1/segment", response_class=Response, openapi_extra=_IMAGE_BODY)
    async def segment(request: Request, model: str | None = None) -> Response:
        """Segment a JPEG or PNG image; the answer is a palette PNG of its size, whose indices are the classes."""
        chosen = _choose(models, model)
        content = await read_image(request, max_bytes=settings.max_bytes)
        loop = asyncio.get_running_loop()
        image = await loop.run_in_executor(pool, partial(decode, content, max_pixels=settings.max_pixels))
        outputs = await chosen.infer(image[None])
        mask = await loop.run_in_executor(pool, encode_mask, outputs.labels[0], chosen.classes)
        return Response(mask, media_type="image/png", headers=_provenance(chosen))

    return app


def _add_protocol(app: FastAPI, models: Mapping[str, ServedModel], settings: Settings, pool: ThreadPoolExecutor) -> None:
    @app.get("/v2")
    async def server() -> dict[str, Any]:
        return protocol.server_metadata()

    @app.get("/v2/health/live")
    async def live() -> dict[str, bool]:
        return {"live": True}

    @app.get("/v2/health/ready")
    async def ready() -> dict[str, bool]:
        return {"ready": True}  # models are loaded and warm before the application is made

    @app.get("/v2/models/{name}")
    @app.get("/v2/models/{name}/versions/{version}")
    async def metadata(name: str, version: str = protocol.VERSION) -> dict[str, Any]:
        return protocol.model_metadata(_find(models, name, version))

    @app.get("/v2/models/{name}/ready")
    @app.get("/v2/models/{name}/versions/{version}/ready")
    async def model_ready(name: str, version: str = protocol.VERSION) -> dict[str, Any]:
        return {"name": _find(models, name, version).name, "ready": True}

    @app.post("/v2/models/{name}/infer", response_class=Response)
    @app.post("/v2/models/{name}/versions/{version}/infer", response_class=Response)
    async def infer(request: Request, name: str, version: str = protocol.VERSION) -> Response:
        model = _find(models, name, version)
        if "inference-header-content-length" in request.headers:
            raise RequestError(400, "binary tensors are not taken: send data as JSON")
        body = await read_body(request, max_bytes=settings.max_bytes)
        loop = asyncio.get_running_loop()
        asked, images = await loop.run_in_executor(pool, partial(protocol.parse_infer, body, max_pixels=settings.max_pixels))
        wanted = protocol.wanted_outputs(model, asked)
        outputs = await model.infer(images)
        answer = await loop.run_in_executor(pool, protocol.infer_response, model, asked, wanted, outputs)
        return Response(answer, media_type="application/json", headers=_provenance(model))


def _answer_errors(app: FastAPI) -> None:
    """Answer every error as the protocol's clients expect it: {"error": what is wrong}."""

    def answer(status: int, message: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
        return JSONResponse({"error": message}, status, headers)

    @app.exception_handler(RequestError)
    async def refused(request: Request, error: RequestError) -> Response:
        return answer(error.status, str(error))

    @app.exception_handler(InputError)
    async def not_taken(request: Request, error: InputError) -> Response:
        return answer(400, str(error))

    @app.exception_handler(EngineError)
    async def engine_failed(request: Request, error: EngineError) -> Response:
        logging.getLogger(__name__).error("%s %s: %s", request.method, request.url.path, error)
        return answer(500, str(error))

    @app.exception_handler(HTTPException)
    async def no_route(request: Request, error: HTTPException) -> Response:
        return answer(error.status_code, f"{request.method} {request.url.path}: {error.detail}", error.headers)

    @app.exception_handler(RequestValidationError)
    async def wrong_parameter(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        return answer(400, f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}")

    @app.exception_handler(ClientDisconnect)
    async def gone(request: Request, error: ClientDisconnect) -> Response:
        return answer(400, "the client went away")

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        return answer(500, "the server failed; its log says why")


def _find(models: Mapping[str, ServedModel], name: str, version: str) -> ServedModel:
    if name not in models:
        raise RequestError(404, f"no model is named {name!r}; there is {', '.join(models)}")
    if version != protocol.VERSION:
        raise RequestError(404, f"{name} has no version {version!r}; it has {protocol.VERSION}")
    return models[name]


def _choose(models: Mapping[str, ServedModel], name: str | None) -> ServedModel:
    if name is not None:
        return _find(models, name, protocol.VERSION)
    if len(models) > 1:
        raise RequestError(400, f"several models are served: choose one with ?model=, of {', '.join(models)}")
    return next(iter(models.values()))


def _provenance(model: ServedModel) -> dict[str, str]:
    return {"X-Ddcat-Model": model.name, "X-Ddcat-Bundle": model.bundle.digest}
