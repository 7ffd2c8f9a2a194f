"""Routes of the Open Inference Protocol."""

import asyncio
from functools import partial
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ddcat_serve import protocol
from ddcat_serve.bodies import read_body
from ddcat_serve.context import ERRORS, Context, provenance
from ddcat_serve.models import find

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


def router(context: Context) -> APIRouter:
    """Make the routes."""
    routes = APIRouter(tags=["Open Inference Protocol"], responses=ERRORS)
    models, settings = context.models, context.settings

    @routes.get("/v2")
    async def server() -> dict[str, Any]:
        """Name, version, extensions and settings of the server."""
        return protocol.server_metadata(settings)

    @routes.get("/v2/health/live")
    async def live() -> Response:
        """Say whether the server works; where an engine cannot be started again, it is to be restarted."""
        return JSONResponse({"live": context.live}, 200 if context.live else 503)

    @routes.get("/v2/health/ready")
    async def ready() -> Response:
        """Say whether all models take requests; from SIGTERM on they do not."""
        return JSONResponse({"ready": context.ready}, 200 if context.ready else 503)

    @routes.get("/v2/models/{name}")
    @routes.get("/v2/models/{name}/versions/{version}")
    async def metadata(name: str, version: str | None = None) -> Response:
        """Say what a model takes and gives, what it was made from, and what the gate said of it."""
        model = find(models, name, version)
        return JSONResponse(protocol.model_metadata(models, model), headers=provenance(model))

    @routes.get("/v2/models/{name}/ready")
    @routes.get("/v2/models/{name}/versions/{version}/ready")
    async def model_ready(name: str, version: str | None = None) -> Response:
        """Say whether a model takes requests."""
        model = find(models, name, version)
        ready = model.ready and not context.draining
        return JSONResponse({"name": model.name, "ready": ready}, 200 if ready else 503)

    @routes.post("/v2/models/{name}/infer", response_class=Response, openapi_extra=_BODY)
    @routes.post("/v2/models/{name}/versions/{version}/infer", response_class=Response, openapi_extra=_BODY)
    async def infer(request: Request, name: str, version: str | None = None) -> Response:
        """Segment a batch of images: tensors in, tensors out."""
        model = find(models, name, version)
        body = await read_body(request, max_bytes=settings.max_bytes, timeout=settings.body_timeout)
        loop, length = asyncio.get_running_loop(), request.headers.get(protocol.LENGTH)
        parse = partial(protocol.parse_infer, body, header_length=length, max_pixels=settings.max_pixels)
        asked, images = await loop.run_in_executor(context.pool, parse)
        wanted = protocol.wanted_outputs(model, [output.name for output in asked.outputs])
        timeout = protocol.timeout_of(asked.parameters, settings)
        outputs = await model.infer(images, timeout=timeout, gone=request.receive)
        answer = await loop.run_in_executor(context.pool, protocol.infer_answer, model, asked, wanted, outputs)
        headers = provenance(model)
        if answer.header_length is not None:
            headers[protocol.LENGTH] = str(answer.header_length)
        return Response(
            answer.body, media_type="application/json" if answer.header_length is None else _BINARY, headers=headers
        )

    return routes
