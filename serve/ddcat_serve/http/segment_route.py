"""`POST /v1/segment`: image files in, masks out."""

import asyncio
import base64
import itertools
import json
from collections.abc import Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Query
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from ddcat.confidence import NO_THRESHOLD
from ddcat.engines.errors import InputError
from ddcat.geotiff import is_tiff
from ddcat.preprocess import AS_STORED, FileRule, network_size
from ddcat_serve.errors import RequestError, naming_files
from ddcat_serve.http.content_negotiation import Representation, negotiate
from ddcat_serve.http.decoding import size_of
from ddcat_serve.http.request_body import Upload, read_images
from ddcat_serve.http.segmentation import JSON, PNG, RAW, REPRESENTATIONS, TIFF, Encoded, Place, Segmentation
from ddcat_serve.http.server_state import ERRORS, ServerState, provenance_headers
from ddcat_serve.inference.large_images import QueuedInference, admit_cut, most_blend_bytes
from ddcat_serve.inference.model_registry import Models, choose_model
from ddcat_serve.inference.served_model import ServedModel
from ddcat_serve.settings import Settings

__all__ = ["router"]

_IMAGES = ("image/jpeg", "image/png", "image/webp", "image/tiff")
_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "One image file, or a form with one or several.",
        "content": {
            **{kind: {"schema": {"type": "string", "format": "binary"}} for kind in _IMAGES},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {"image": {"type": "array", "items": {"type": "string", "format": "binary"}}},
                }
            },
        },
    }
}
_ANSWER: dict[str, Any] = {
    "description": "The mask, of the same size as the image. For several images: JSON with `results` in their order.",
    "headers": {
        "X-Ddcat-Model": {"schema": {"type": "string"}},
        "X-Ddcat-Bundle": {"schema": {"type": "string"}, "description": "SHA-256 of the manifest."},
        "X-Ddcat-Passport": {"schema": {"type": "string"}, "description": "The gate's verdict, or none."},
    },
    "content": {
        PNG: {
            "schema": {"type": "string", "format": "binary"},
            "description": "A palette PNG whose indices are the classes; or, if Accept names it: view=labels, view=overlay, "
            "view=confidence.",
        },
        TIFF: {
            "schema": {"type": "string", "format": "binary"},
            "description": "One band of labels with a colour table; of a GeoTIFF, with its CRS and transform.",
        },
        RAW: {"schema": {"type": "string", "format": "binary"}, "description": "Labels, one byte each; X-Ddcat-Shape: H, W."},
        JSON: {
            "schema": {"type": "object"},
            "description": "COCO run lengths of each class present.",
            "example": {
                "size": [1, 2],
                "classes": [{"id": 1, "name": "road", "area": 2, "rle": {"size": [1, 2], "counts": "02"}}],
            },
        },
    },
}


def router(state: ServerState) -> APIRouter:
    """Create the route."""
    routes = APIRouter(tags=["Masks"], responses={**ERRORS, 200: _ANSWER})
    settings = state.settings

    @routes.post("/v1/segment", response_class=Response, openapi_extra=_BODY)
    async def segment(
        request: Request,
        model: Annotated[str | None, Query(description="Name of the model; required if several are served.")] = None,
        version: Annotated[str | None, Query(description="Version of the model. Default: the last one.")] = None,
        preprocessed: Annotated[
            bool, Query(description="The images are the engine's input already: they are neither turned nor resized.")
        ] = False,
        abstain: Annotated[
            bool, Query(description="Label 255 where the confidence is not above the threshold of the bundle.")
        ] = False,
        timeout: Annotated[float | None, Query(gt=0, le=settings.max_timeout, description="Deadline in seconds.")] = None,
    ) -> Response:
        """
        Segment image files: JPEG, PNG, WebP or GeoTIFF, one as the body or several as a form.

        An image becomes the engine's input as the manifest's `preprocessing` says; the mask has the size of the image, turned
        where EXIF counts.
        """
        began = asyncio.get_running_loop().time()

        def choose() -> tuple[ServedModel, Representation]:
            chosen = _choose(state.models, model, version, abstain=abstain)
            available = [each for each in REPRESENTATIONS if each.view != "confidence" or _has_confidence(chosen)]
            return chosen, negotiate(request.headers.get("accept"), available)

        choose()  # refuse before the body is read
        uploads = await read_images(request, max_bytes=settings.max_bytes, timeout=settings.body_timeout)
        loop = asyncio.get_running_loop()
        deadline = began + (timeout or settings.timeout)
        chosen, representation = choose()  # another model may have taken its place meanwhile; this one keeps the request
        # refuse before decoding
        rule: FileRule = chosen.bundle.manifest.preprocessing
        rule = AS_STORED.model_copy(update={"bands": rule.bands}) if preprocessed else rule
        sizes = await _sizes(uploads.files, rule, settings.max_pixels, state.pool)
        places = _admit(chosen, sizes, rule, deadline - loop.time(), settings)
        each = Segmentation(state, chosen, rule, representation, deadline, abstain)
        work = [each.one(upload.content, place) for upload, place in zip(uploads.files, places, strict=True)]
        try:
            results = await _unless_gone(_gather(work), request)
        finally:
            _leave(chosen, places)
        headers = provenance_headers(chosen) | {"Vary": "Accept"}
        if not uploads.single:
            answer = await loop.run_in_executor(state.pool, _several, results, uploads.files, representation)
            return Response(answer, media_type=JSON, headers=headers)
        [(encoded, shape)] = results
        if isinstance(encoded, dict):
            encoded = json.dumps(encoded, separators=(",", ":")).encode()
        headers |= {"X-Ddcat-Shape": f"{shape[0]}, {shape[1]}"}
        return Response(encoded, media_type=representation.media_type, headers=headers)

    return routes


async def _unless_gone(work: Coroutine[Any, Any, list[Encoded]], request: Request) -> list[Encoded]:
    """Return the result of the work; if the client disconnects first, cancel it and raise ClientDisconnect."""
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(request.receive())
    try:
        either: set[asyncio.Future[Any]] = {working, leaving}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()
        del either, working  # a reference cycle, with all images: an error keeps this frame, and they keep the error


async def _gather(work: Sequence[Coroutine[Any, Any, Encoded]]) -> list[Encoded]:
    tasks = [asyncio.ensure_future(each) for each in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:  # if one fails, nobody waits for the others
            task.cancel()
        tasks.clear()  # as above


async def _sizes(uploads: Sequence[Upload], rule: FileRule, max_pixels: int, pool: ThreadPoolExecutor) -> list[tuple[int, int]]:
    read = partial(size_of, rule=rule, max_pixels=max_pixels)
    return [
        await asyncio.get_running_loop().run_in_executor(pool, read, upload.content)  # by GDAL, which may take a while
        if is_tiff(upload.content)
        else read(upload.content)
        for upload in uploads
    ]


def _several(encoded_masks: Sequence[Encoded], uploads: Sequence[Upload], representation: Representation) -> bytes:
    results = []
    for (encoded, shape), upload in zip(encoded_masks, uploads, strict=True):
        entry: dict[str, Any] = {"filename": upload.filename, "size": list(shape)}
        if isinstance(encoded, dict):
            results.append(entry | encoded)
        else:
            results.append(entry | {"media_type": str(representation), "data": base64.b64encode(encoded).decode("ascii")})
    return json.dumps({"results": results}, separators=(",", ":")).encode()


def _choose(models: Models, name: str | None, version: str | None, *, abstain: bool) -> ServedModel:
    chosen = choose_model(models, name, version)
    if abstain and chosen.bundle.manifest.abstention is None:
        raise RequestError(400, f"{chosen.name}: {NO_THRESHOLD}")
    return chosen


def _has_confidence(model: ServedModel) -> bool:
    return any(entry.name == "confidence" for entry in model.engine.outputs)


def _admit(
    model: ServedModel, sizes: Sequence[tuple[int, int]], rule: FileRule, timeout: float, settings: Settings
) -> list[Place]:
    """Queue images of some (height, width) at the size that the model sees; those that it cuts are only planned."""
    max_pixels = settings.max_pixels
    resized = [network_size(size, rule) for size in sizes]
    for what, found in (("have", sizes), ("are resized to", resized)):
        pixels = sum(height * width for height, width in found)
        if pixels > max_pixels:
            raise RequestError(413, f"the images {what} {pixels} pixels; expected at most {max_pixels} together")
    cut = [model.bundle.manifest.preprocessing.cuts(*size) for size in resized]
    planned: list[QueuedInference] = []
    try:
        with naming_files(sizes, resized):
            for size in itertools.compress(resized, cut):
                place = admit_cut(model, size, timeout, max_bytes=most_blend_bytes(settings))
                planned.append(place)  # an error at a later one must know it
            whole = [(1, size) for size, cuts in zip(resized, cut, strict=True) if not cuts]
            tiled, jobs = iter(planned), iter(model.admit(whole, timeout) if whole else [])
            return [next(tiled) if cuts else next(jobs) for cuts in cut]
    except (InputError, RequestError):
        _leave(model, planned)
        raise


def _leave(model: ServedModel, places: Sequence[Place]) -> None:
    for place in places:
        if isinstance(place, QueuedInference):
            place.stop()
        else:
            model.release(place)
