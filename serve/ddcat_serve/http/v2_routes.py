"""Routes of the Open Inference Protocol."""

import asyncio
import json
from functools import partial
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ddcat_serve.errors import RequestError
from ddcat_serve.http import v2_protocol
from ddcat_serve.http.infer_json import LENGTH, infer_answer, parse_infer
from ddcat_serve.http.request_body import read_body
from ddcat_serve.http.server_state import ERRORS, Context, Json, provenance
from ddcat_serve.http.v2_metadata import LOADING, index, model_config, model_statistics
from ddcat_serve.inference.model_registry import find

__all__ = ["router"]

_BINARY = "application/octet-stream"
_EXAMPLE = {
    "id": "1",
    "inputs": [{"name": "image", "shape": [1, 1, 2, 3], "datatype": "UINT8", "data": [255, 0, 0, 0, 0, 255]}],
    "outputs": [{"name": "labels"}],
}
_TENSOR = {
    "type": "object",
    "required": ["name", "shape", "datatype"],
    "properties": {
        "name": {"type": "string"},
        "shape": {"type": "array", "items": {"type": "integer", "minimum": 1}},
        "datatype": {"type": "string"},
        "parameters": {"type": "object"},
        "data": {"type": "array", "items": {}},
    },
}
_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "JSON; or JSON and behind it the image, the length of the JSON in Inference-Header-Content-Length.",
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["inputs"],
                    "properties": {
                        "id": {"type": "string"},
                        "parameters": {"type": "object"},
                        "inputs": {"type": "array", "items": _TENSOR, "minItems": 1, "maxItems": 1},
                        "outputs": {
                            "type": "array",
                            "items": {"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}}},
                        },
                    },
                },
                "example": _EXAMPLE,
            },
            _BINARY: {"schema": {"type": "string", "format": "binary"}},
        },
    }
}
_INDEX: dict[str, Any] = {
    "requestBody": {
        "description": "Nothing, or whether to list only what takes requests.",
        "content": {
            "application/json": {"schema": {"type": "object", "properties": {"ready": {"type": "boolean", "nullable": True}}}}
        },
    }
}


def router(context: Context) -> APIRouter:
    """Make the routes."""
    routes = APIRouter(tags=["Open Inference Protocol"], responses=ERRORS)
    models, settings = context.models, context.settings

    @routes.get("/v2")
    async def server() -> dict[str, Any]:
        """Name, version, extensions and settings of the server."""
        return v2_protocol.server_metadata(settings)

    @routes.get("/v2/health/live")
    async def live() -> Response:
        """Say whether the server works; where an engine cannot be started again, it is to be restarted."""
        return JSONResponse({"live": context.live}, 200 if context.live else 503)

    @routes.get("/v2/health/ready")
    async def ready() -> Response:
        """Say whether all models take requests; from SIGTERM on they do not."""
        return JSONResponse({"ready": context.ready}, 200 if context.ready else 503)

    @routes.get("/v2/models/stats")
    async def all_statistics() -> Response:
        """Return the statistics of all models."""
        if "stats" in models:  # a model of this name is asked for by the same path
            model = find(models, "stats")
            return Json(v2_protocol.model_metadata(models, model), headers=provenance(model))
        return Json(model_statistics(context))

    @routes.get("/v2/models/{name}")
    @routes.get("/v2/models/{name}/versions/{version}")
    async def metadata(name: str, version: str | None = None) -> Response:
        """Say what a model takes and gives, what it was made from, and what the gate said of it."""
        model = find(models, name, version)
        return Json(v2_protocol.model_metadata(models, model), headers=provenance(model))

    @routes.get("/v2/models/{name}/ready")
    @routes.get("/v2/models/{name}/versions/{version}/ready")
    async def model_ready(name: str, version: str | None = None) -> Response:
        """Say whether a model takes requests."""
        model = find(models, name, version)
        ready = model.ready and not context.draining
        return JSONResponse({"name": model.name, "ready": ready}, 200 if ready else 503)

    @routes.get("/v2/models/{name}/config")
    @routes.get("/v2/models/{name}/versions/{version}/config")
    async def config(name: str, version: str | None = None) -> Response:
        """Return a model's configuration, as Triton's clients read it."""
        return Json(model_config(models, find(models, name, version)))

    @routes.get("/v2/models/{name}/stats")
    @routes.get("/v2/models/{name}/versions/{version}/stats")
    async def statistics(name: str, version: str | None = None) -> Response:
        """Return how often a model was asked since the start, and how long that took in nanoseconds."""
        return Json(model_statistics(context, name, version))

    @routes.post("/v2/repository/index", openapi_extra=_INDEX)
    async def repository_index(request: Request) -> Response:
        """List the versions of all models, and whether they take requests."""
        body = await read_body(request, max_bytes=v2_protocol.ROOM, timeout=settings.body_timeout)
        return Json(index(context, ready=_asks_for_ready(body)))

    @routes.post("/v2/repository/models/{name}/load", include_in_schema=False)
    @routes.post("/v2/repository/models/{name}/unload", include_in_schema=False)
    async def load(name: str) -> Response:
        raise RequestError(400, LOADING)

    @routes.post("/v2/models/{name}/infer", response_class=Response, openapi_extra=_BODY)
    @routes.post("/v2/models/{name}/versions/{version}/infer", response_class=Response, openapi_extra=_BODY)
    async def infer(request: Request, name: str, version: str | None = None) -> Response:
        """Segment a batch of images: tensors in, tensors out."""
        model = find(models, name, version)
        body = await read_body(request, max_bytes=settings.max_bytes, timeout=settings.body_timeout)
        loop, length = asyncio.get_running_loop(), request.headers.get(LENGTH)
        parse = partial(parse_infer, body, header_length=length, max_pixels=settings.max_pixels)
        asked, images = await loop.run_in_executor(context.pool, parse)
        wanted = v2_protocol.wanted_outputs(model, asked.wanted)
        timeout = v2_protocol.timeout_of(asked.parameters, settings)
        outputs = await model.infer(images, timeout=timeout, gone=request.receive)
        write = partial(infer_answer, model, asked, wanted, outputs, max_pixels=settings.max_pixels)
        answer = await loop.run_in_executor(context.pool, write)
        headers = provenance(model)
        if answer.header_length is not None:
            headers[LENGTH] = str(answer.header_length)
        return Response(
            answer.body, media_type="application/json" if answer.header_length is None else _BINARY, headers=headers
        )

    return routes


def _asks_for_ready(body: bytes) -> bool:
    """Read the body of the index, which may be empty."""
    try:
        asked = json.loads(body) if body else {}
    except (ValueError, RecursionError) as cause:
        raise RequestError(400, "the body is not JSON") from cause
    if not isinstance(asked, dict):
        raise RequestError(400, "the body is not a JSON object")
    return v2_protocol.check_flag("ready", asked.get("ready") or False)
