"""The page at `/` and its routes: the models and, with --demo, their golden images."""

import asyncio
import base64
import hashlib
from importlib.resources import files
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from fastapi import APIRouter, Query
from starlette.responses import HTMLResponse, Response

from ddcat.engines.golden import Example
from ddcat_serve.errors import RequestError
from ddcat_serve.http.encoding import encode_image
from ddcat_serve.http.server_state import ERRORS, FiniteJson, ServerState, provenance_headers
from ddcat_serve.inference.model_registry import find_model
from ddcat_serve.inference.served_model import ServedModel

__all__ = ["router", "scale_perturbation"]


def router(state: ServerState) -> APIRouter:
    """Create the routes."""
    routes = APIRouter(tags=["Page"], responses=ERRORS)
    html, headers = _build_page()

    @routes.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def page() -> Response:
        return HTMLResponse(html, headers=headers)

    @routes.get("/v1/models")
    async def models() -> Response:
        """List all versions of all models with their classes, colours and passports."""
        return FiniteJson({"models": [_describe(model) for model in state.served]})

    @routes.get("/v1/models/{name}/examples/{number}", response_class=Response)
    async def example(
        name: str,
        number: int,
        version: str | None = None,
        strength: Annotated[
            float, Query(ge=0, le=1, description="Share of the attack's perturbation; 0 is the clean image.")
        ] = 0.0,
    ) -> Response:
        """Return a golden image of a model as a PNG, with that share of its perturbation; requires --demo."""
        model = find_model(state.models, name, version)
        pairs = _pairs(model)
        if not 0 <= number < len(pairs):
            hint = f"it has {len(pairs)}" if pairs else "--demo shows them, if the bundle has any"
            raise RequestError(404, f"{name} has no example {number}: {hint}")
        clean, attacked = pairs[number]
        content = await asyncio.get_running_loop().run_in_executor(
            state.pool, lambda: encode_image(scale_perturbation(clean.image, attacked.image, strength))
        )
        return Response(content, media_type="image/png", headers=provenance_headers(model))

    return routes


def _build_page() -> tuple[str, dict[str, str]]:
    """Insert script and style into the page; its headers allow no others."""
    html, hashes = _read("page.html"), {}
    for part, file in (("style", "page.css"), ("script", "page.js")):
        content = f"\n{_read(file)}"
        html = html.replace(f"{{{part}}}", content)
        hashes[part] = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode("ascii")
    return html, {
        # nothing from other sites: what the page shows stays between it and this server
        "Content-Security-Policy": f"default-src 'none'; style-src 'sha256-{hashes['style']}'; "
        f"script-src 'sha256-{hashes['script']}'; img-src 'self' blob: data:; connect-src 'self'; form-action 'none'; "
        "base-uri 'none'; frame-ancestors 'none'",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }


def _read(name: str) -> str:
    return files("ddcat_serve.http").joinpath(name).read_text(encoding="utf-8")


def scale_perturbation(clean: npt.NDArray[np.uint8], attacked: npt.NDArray[np.uint8], strength: float) -> npt.NDArray[np.uint8]:
    """Return an image with a share of its perturbation, in [0, 1], rounded toward the clean image; all are (H, W, 3) uint8."""
    change = strength * (attacked.astype(np.float64) - clean)
    return (clean + np.trunc(change + np.copysign(1e-9, change))).astype(np.uint8)


def _describe(model: ServedModel) -> dict[str, Any]:
    runtime = model.engine.description.get("runtime", model.bundle.manifest.engine.name)
    pairs, golden = _pairs(model), model.bundle.manifest.golden
    attack = golden.attack if pairs and golden else None
    return {"name": model.name, "engine": runtime, "examples": len(pairs), "attack": attack, **model.describe()}


def _pairs(model: ServedModel) -> list[tuple[Example, Example]]:
    """Return pairs of a clean image and its adversarial one; none of other bands than three, which no browser shows."""
    if model.bundle.manifest.preprocessing.channels != 3:
        return []
    by_name = {example.name: example for example in model.examples}
    numbers = sorted(int(name.removeprefix("clean.")) for name in by_name if name.startswith("clean."))
    return [(by_name[f"clean.{number}"], by_name[f"adversarial.{number}"]) for number in numbers]
