"""HTTP routes of the protocol's model repository extension: index, load, unload; and a roll-back."""

import asyncio
import json
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from ddcat_serve.errors import RequestError
from ddcat_serve.http import v2_metadata, v2_protocol
from ddcat_serve.http.request_body import read_body
from ddcat_serve.http.server_state import ERRORS, FiniteJson, ServerState
from ddcat_serve.inference.repository import Repository, Switched

__all__ = ["repository_of", "router"]


def _body(description: str, properties: dict[str, Any]) -> dict[str, Any]:
    schema = {"type": "object", "properties": properties}
    return {"requestBody": {"description": description, "content": {"application/json": {"schema": schema}}}}


_FLAG = {"type": "boolean"}
_INDEX = _body("Empty, or whether to list only models that accept requests.", {"ready": {**_FLAG, "nullable": True}})
_LOAD = _body(
    "Empty, or parameters: `config`, a text of JSON, may name a version, as Triton's clients write it; `rollback` asks for the "
    "one that answered before.",
    {"parameters": {"type": "object", "properties": {"config": {"type": "string"}, "rollback": _FLAG}}},
)
_UNLOAD = _body(
    "Empty, or parameters, of which none changes anything.",
    {"parameters": {"type": "object", "properties": {"unload_dependents": _FLAG}}},
)


def router(state: ServerState) -> APIRouter:
    """Create the routes."""
    routes = APIRouter(tags=["Model repository"], responses=ERRORS)

    async def read(request: Request) -> dict[str, Any]:
        limit, timeout = v2_protocol.MAX_ENVELOPE_BYTES, state.settings.body_timeout
        return _parse(await read_body(request, max_bytes=limit, timeout=timeout))

    @routes.post("/v2/repository/index", openapi_extra=_INDEX)
    async def index(request: Request) -> Response:
        """List the versions of all models, and whether they accept requests."""
        ready = v2_protocol.check_flag("ready", (await read(request)).get("ready") or False)
        return FiniteJson(await asyncio.to_thread(v2_metadata.repository_index, state, ready=ready))

    @routes.post("/v2/repository/models/{name}/load", openapi_extra=_LOAD)
    async def load(request: Request, name: str) -> Response:
        """Verify and warm up the newest version of a model, or the one named, then let it answer."""
        repository = repository_of(state)
        version, roll_back = v2_protocol.read_load_options(_parameters(await read(request)))
        return _answer(await (repository.roll_back(name) if roll_back else repository.load(name, version)))

    @routes.post("/v2/repository/models/{name}/unload", openapi_extra=_UNLOAD)
    async def unload(request: Request, name: str) -> Response:
        """Let a model answer no more requests."""
        repository = repository_of(state)
        v2_protocol.check_unload_options(_parameters(await read(request)))
        return _answer(await repository.unload(name))

    return routes


def repository_of(state: ServerState) -> Repository:
    """Return the repository; raise RequestError (400, 403) if requests may not load models."""
    if state.repository is None:
        raise RequestError(400, v2_metadata.LOADING)
    if state.repository.refusal is not None:
        raise RequestError(403, state.repository.refusal)
    return state.repository


def _answer(done: Switched) -> Response:
    report = None if done.report is None else {**done.report._asdict(), "summary": str(done.report)}
    return FiniteJson({**done._asdict(), "report": report})


def _parse(body: bytes) -> dict[str, Any]:
    """Parse a body, which may be empty."""
    try:
        options = json.loads(body) if body else {}
    except (ValueError, RecursionError) as cause:
        raise RequestError(400, "the body is not JSON") from cause
    if not isinstance(options, dict):
        raise RequestError(400, "the body is not a JSON object")
    return options


def _parameters(body: dict[str, Any]) -> dict[str, Any]:
    parameters = body.get("parameters") or {}
    if not isinstance(parameters, dict):
        raise RequestError(400, "parameters is not a JSON object")
    return parameters
