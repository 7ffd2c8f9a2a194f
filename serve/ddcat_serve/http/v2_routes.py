"""HTTP routes of the Open Inference Protocol."""

import asyncio
from functools import partial
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ddcat_serve.http import v2_metadata, v2_protocol
from ddcat_serve.http.infer_json import LENGTH, infer_answer, parse_infer
from ddcat_serve.http.request_body import read_body
from ddcat_serve.http.server_state import ERRORS, FiniteJson, ServerState, provenance_headers
from ddcat_serve.inference.model_registry import find_model

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
        "description": "JSON; or JSON followed by the image, with the length of the JSON in Inference-Header-Content-Length.",
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


def router(state: ServerState) -> APIRouter:
    """Create the routes."""
    routes = APIRouter(tags=["Open Inference Protocol"], responses=ERRORS)
    models, settings = state.models, state.settings

    @routes.get("/v2")
    async def server() -> dict[str, Any]:
        """Return name, version, extensions and settings of the server."""
        return v2_metadata.server_metadata(state)

    @routes.get("/v2/health/live")
    async def live() -> Response:
        """Report whether the server works; if an engine cannot be restarted, the server must be."""
        return JSONResponse({"live": state.live}, 200 if state.live else 503)

    @routes.get("/v2/health/ready")
    async def ready() -> Response:
        """Report whether all models accept requests; false from SIGTERM on."""
        return JSONResponse({"ready": state.ready}, 200 if state.ready else 503)

    @routes.get("/v2/models/stats")
    async def all_statistics() -> Response:
        """Return the statistics of all models."""
        if "stats" in models:  # the metadata of a model of this name has the same path
            model = find_model(models, "stats")
            return FiniteJson(v2_metadata.model_metadata(models, model), headers=provenance_headers(model))
        return FiniteJson(v2_metadata.model_statistics(state))

    @routes.get("/v2/models/{name}")
    @routes.get("/v2/models/{name}/versions/{version}")
    async def metadata(name: str, version: str | None = None) -> Response:
        """Return a model's inputs, outputs, origin and passport."""
        model = find_model(models, name, version)
        return FiniteJson(v2_metadata.model_metadata(models, model), headers=provenance_headers(model))

    @routes.get("/v2/models/{name}/ready")
    @routes.get("/v2/models/{name}/versions/{version}/ready")
    async def model_ready(name: str, version: str | None = None) -> Response:
        """Report whether a model accepts requests."""
        model = find_model(models, name, version)
        ready = model.ready and not state.draining
        return JSONResponse({"name": model.name, "ready": ready}, 200 if ready else 503)

    @routes.get("/v2/models/{name}/config")
    @routes.get("/v2/models/{name}/versions/{version}/config")
    async def config(name: str, version: str | None = None) -> Response:
        """Return a model's configuration in Triton's form."""
        return FiniteJson(v2_metadata.model_config(models, find_model(models, name, version)))

    @routes.get("/v2/models/{name}/stats")
    @routes.get("/v2/models/{name}/versions/{version}/stats")
    async def statistics(name: str, version: str | None = None) -> Response:
        """Return the number of a model's requests since the start, and their times in nanoseconds."""
        return FiniteJson(v2_metadata.model_statistics(state, name, version))

    @routes.post("/v2/models/{name}/infer", response_class=Response, openapi_extra=_BODY)
    @routes.post("/v2/models/{name}/versions/{version}/infer", response_class=Response, openapi_extra=_BODY)
    async def infer(request: Request, name: str, version: str | None = None) -> Response:
        """Segment a batch of images: tensors in, tensors out."""
        find_model(models, name, version)  # an unknown one is refused before the body is read
        body = await read_body(request, max_bytes=settings.max_bytes, timeout=settings.body_timeout)
        loop, length = asyncio.get_running_loop(), request.headers.get(LENGTH)
        parse = partial(parse_infer, body, header_length=length, max_pixels=settings.max_pixels)
        parsed, tensor = await loop.run_in_executor(state.pool, parse)
        model = find_model(models, name, version)  # another may have taken its place meanwhile; this one keeps the request
        images = await loop.run_in_executor(state.pool, v2_protocol.prepared, tensor, model)
        entries = v2_protocol.requested_outputs(model, parsed.requested)
        timeout = v2_protocol.read_timeout(parsed.parameters, settings)
        outputs = await model.infer(images, timeout=timeout, gone=request.receive)
        write = partial(infer_answer, model, parsed, entries, outputs, max_pixels=settings.max_pixels)
        answer = await loop.run_in_executor(state.pool, write)
        headers = provenance_headers(model)
        if answer.header_length is not None:
            headers[LENGTH] = str(answer.header_length)
        return Response(
            answer.body, media_type="application/json" if answer.header_length is None else _BINARY, headers=headers
        )

    return routes
