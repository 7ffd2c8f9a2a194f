"""`POST /v1/segment`: image files in, masks out."""

import asyncio
import base64
import json
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Annotated, Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
from fastapi import APIRouter, Query
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from ddcat.classes import Classes
from ddcat.engines import Outputs
from ddcat_serve.errors import RequestError
from ddcat_serve.http.content_negotiation import Representation, negotiate
from ddcat_serve.http.decoding import decode, size_of
from ddcat_serve.http.encoding import encode_confidence, encode_labels, encode_mask, encode_overlay, encode_rle
from ddcat_serve.http.request_body import Upload, read_images
from ddcat_serve.http.server_state import ERRORS, ServerState, provenance_headers
from ddcat_serve.inference.jobs import Job
from ddcat_serve.inference.model_registry import Models, find_model
from ddcat_serve.inference.served_model import ServedModel

__all__ = ["router"]

_T = TypeVar("_T")
_TIMEOUT_HINT = "use a longer timeout, or try again later"

_PNG, _RAW, _JSON = "image/png", "application/octet-stream", "application/json"
_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "One image file, or a form with one or several.",
        "content": {
            **{kind: {"schema": {"type": "string", "format": "binary"}} for kind in ("image/jpeg", "image/png", "image/webp")},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {"image": {"type": "array", "items": {"type": "string", "format": "binary"}}},
                }
            },
        },
    }
}


class _Prediction(NamedTuple):
    """An image, and the engine's outputs for it."""

    image: npt.NDArray[np.uint8]
    outputs: Outputs

    @property
    def labels(self) -> npt.NDArray[np.uint8]:
        labels: npt.NDArray[np.uint8] = self.outputs.labels[0]
        return labels


_Payload = bytes | dict[str, Any]
_Encoded = tuple[_Payload, tuple[int, int]]  # and the height and width of the mask

_ENCODERS: dict[Representation, Callable[[_Prediction, Classes], _Payload]] = {
    Representation(_PNG): lambda prediction, classes: encode_mask(prediction.labels, classes),
    Representation(_PNG, "labels"): lambda prediction, classes: encode_labels(prediction.labels),
    Representation(_PNG, "overlay"): lambda prediction, classes: encode_overlay(prediction.labels, prediction.image, classes),
    Representation(_PNG, "confidence"): lambda prediction, classes: encode_confidence(_confidence(prediction.outputs)),
    Representation(_RAW): lambda prediction, classes: np.ascontiguousarray(prediction.labels).tobytes(),
    Representation(_JSON): lambda prediction, classes: encode_rle(prediction.labels, classes),
}
_ANSWER: dict[str, Any] = {
    "description": "The mask, of the same size as the stored image. For several images: JSON with `results` in their order.",
    "headers": {
        "X-Ddcat-Model": {"schema": {"type": "string"}},
        "X-Ddcat-Bundle": {"schema": {"type": "string"}, "description": "SHA-256 of the manifest."},
        "X-Ddcat-Passport": {"schema": {"type": "string"}, "description": "The gate's verdict, or none."},
    },
    "content": {
        _PNG: {
            "schema": {"type": "string", "format": "binary"},
            "description": "A palette PNG whose indices are the classes; or, if Accept names it: view=labels, view=overlay, "
            "view=confidence.",
        },
        _RAW: {"schema": {"type": "string", "format": "binary"}, "description": "Labels, one byte each; X-Ddcat-Shape: H, W."},
        _JSON: {
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
        timeout: Annotated[float | None, Query(gt=0, le=settings.max_timeout, description="Deadline in seconds.")] = None,
    ) -> Response:
        """
        Segment image files: JPEG, PNG or WebP, one as the body or several as a form.

        Pixels are used as they are stored: an EXIF orientation is applied neither to the image nor to the mask.
        """
        began = asyncio.get_running_loop().time()
        chosen = _choose(state.models, model, version)
        available = [each for each in _ENCODERS if each.view != "confidence" or _has_confidence(chosen)]
        representation = negotiate(request.headers.get("accept"), available)
        uploads = await read_images(request, max_bytes=settings.max_bytes, timeout=settings.body_timeout)
        loop = asyncio.get_running_loop()
        deadline = began + (timeout or settings.timeout)
        # refuse before decoding
        sizes = [size_of(upload.content, max_pixels=settings.max_pixels) for upload in uploads.files]
        pixels = sum(height * width for height, width in sizes)
        if pixels > settings.max_pixels:
            raise RequestError(413, f"the images have {pixels} pixels; expected at most {settings.max_pixels} together")
        jobs = chosen.admit([(1, size) for size in sizes], deadline - loop.time())

        async def before_deadline(work: Callable[[], _T]) -> _T:
            """Run work in the pool; raise RequestError (504) if it has not ended by the deadline."""
            try:
                async with asyncio.timeout_at(deadline):
                    return await loop.run_in_executor(state.pool, work)
            except TimeoutError as cause:
                raise RequestError(
                    504, f"{chosen.name}: the request timed out waiting for a decoder; {_TIMEOUT_HINT}"
                ) from cause

        async def segment_one(upload: Upload, job: Job) -> _Encoded:
            image = await before_deadline(partial(decode, upload.content, max_pixels=settings.max_pixels))
            try:
                prediction = _Prediction(image, await chosen.infer(image[None], job=job))
                encoded = await before_deadline(partial(_ENCODERS[representation], prediction, chosen.classes))
                return encoded, prediction.labels.shape
            finally:
                image = prediction = None  # type: ignore[assignment] # the traceback of an error would keep this frame

        work = [segment_one(upload, job) for upload, job in zip(uploads.files, jobs, strict=True)]
        try:
            results = await _unless_gone(_gather(work), request)
        finally:
            for job in jobs:
                chosen.release(job)
        headers = provenance_headers(chosen) | {"Vary": "Accept"}
        if not uploads.single:
            answer = await loop.run_in_executor(state.pool, _several, results, uploads.files, representation)
            return Response(answer, media_type=_JSON, headers=headers)
        [(encoded, shape)] = results
        if isinstance(encoded, dict):
            encoded = json.dumps(encoded, separators=(",", ":")).encode()
        headers |= {"X-Ddcat-Shape": f"{shape[0]}, {shape[1]}"}
        return Response(encoded, media_type=representation.media_type, headers=headers)

    return routes


async def _unless_gone(work: Coroutine[Any, Any, list[_Encoded]], request: Request) -> list[_Encoded]:
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


async def _gather(work: Sequence[Coroutine[Any, Any, _Encoded]]) -> list[_Encoded]:
    tasks = [asyncio.ensure_future(each) for each in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:  # if one fails, nobody waits for the others
            task.cancel()
        tasks.clear()  # as above


def _several(encoded_masks: Sequence[_Encoded], uploads: Sequence[Upload], representation: Representation) -> bytes:
    results = []
    for (encoded, shape), upload in zip(encoded_masks, uploads, strict=True):
        entry: dict[str, Any] = {"filename": upload.filename, "size": list(shape)}
        if isinstance(encoded, dict):
            results.append(entry | encoded)
        else:
            results.append(entry | {"media_type": str(representation), "data": base64.b64encode(encoded).decode("ascii")})
    return json.dumps({"results": results}, separators=(",", ":")).encode()


def _choose(models: Models, name: str | None, version: str | None) -> ServedModel:
    if name is None and len(models) > 1:
        raise RequestError(400, f"several models are served: choose one with ?model=, of {', '.join(models)}")
    return find_model(models, next(iter(models)) if name is None else name, version)


def _has_confidence(model: ServedModel) -> bool:
    return any(entry.name == "confidence" for entry in model.engine.outputs)


def _confidence(outputs: Outputs) -> npt.NDArray[np.float32]:
    assert outputs.confidence is not None  # otherwise the representation is not offered
    first: npt.NDArray[np.float32] = outputs.confidence[0]
    return first
