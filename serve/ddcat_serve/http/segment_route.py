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
from ddcat_serve.http.content_negotiation import Form, choose
from ddcat_serve.http.decoding import decode, size_of
from ddcat_serve.http.encoding import encode_confidence, encode_labels, encode_mask, encode_overlay, encode_rle
from ddcat_serve.http.request_body import Upload, read_images
from ddcat_serve.http.server_state import ERRORS, Context, provenance
from ddcat_serve.inference.jobs import Job
from ddcat_serve.inference.model_registry import Models, ServedModel, find

__all__ = ["router"]

_T = TypeVar("_T")
_LATE = "use a longer timeout, or try again later"

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


class _Seen(NamedTuple):
    """An image, and what the engine said of it."""

    image: npt.NDArray[np.uint8]
    outputs: Outputs

    @property
    def labels(self) -> npt.NDArray[np.uint8]:
        labels: npt.NDArray[np.uint8] = self.outputs.labels[0]
        return labels


Encoded = bytes | dict[str, Any]
_Found = tuple[Encoded, tuple[int, int]]  # and the height and width of the mask

_FORMS: dict[Form, Callable[[_Seen, Classes], Encoded]] = {
    Form(_PNG): lambda seen, classes: encode_mask(seen.labels, classes),
    Form(_PNG, "labels"): lambda seen, classes: encode_labels(seen.labels),
    Form(_PNG, "overlay"): lambda seen, classes: encode_overlay(seen.labels, seen.image, classes),
    Form(_PNG, "confidence"): lambda seen, classes: encode_confidence(_confidence(seen.outputs)),
    Form(_RAW): lambda seen, classes: np.ascontiguousarray(seen.labels).tobytes(),
    Form(_JSON): lambda seen, classes: encode_rle(seen.labels, classes),
}
_ANSWER: dict[str, Any] = {
    "description": "The mask: of the size of the image as it is stored. Several images: JSON, with `results` in their order.",
    "headers": {
        "X-Ddcat-Model": {"schema": {"type": "string"}},
        "X-Ddcat-Bundle": {"schema": {"type": "string"}, "description": "SHA-256 of the manifest."},
        "X-Ddcat-Passport": {"schema": {"type": "string"}, "description": "The gate's verdict, or none."},
    },
    "content": {
        _PNG: {
            "schema": {"type": "string", "format": "binary"},
            "description": "A palette PNG whose indices are the classes; or what Accept names: view=labels, view=overlay, "
            "view=confidence.",
        },
        _RAW: {"schema": {"type": "string", "format": "binary"}, "description": "Labels, a byte each; X-Ddcat-Shape: H, W."},
        _JSON: {
            "schema": {"type": "object"},
            "description": "COCO run lengths of each class that occurs.",
            "example": {
                "size": [1, 2],
                "classes": [{"id": 1, "name": "road", "area": 2, "rle": {"size": [1, 2], "counts": "02"}}],
            },
        },
    },
}


def router(context: Context) -> APIRouter:
    """Make the route."""
    routes = APIRouter(tags=["Masks"], responses={**ERRORS, 200: _ANSWER})
    settings = context.settings

    @routes.post("/v1/segment", response_class=Response, openapi_extra=_BODY)
    async def segment(
        request: Request,
        model: Annotated[str | None, Query(description="Its name; needed where several are served.")] = None,
        version: Annotated[str | None, Query(description="The last one named, of the highest number, by default.")] = None,
        timeout: Annotated[float | None, Query(gt=0, le=settings.max_timeout, description="Seconds.")] = None,
    ) -> Response:
        """
        Segment image files: JPEG, PNG or WebP, one as the body or several as a form.

        Pixels are taken as they are stored; an orientation in EXIF is not applied, to the image or to the mask.
        """
        began = asyncio.get_running_loop().time()
        chosen = _choose(context.models, model, version)
        forms = [form for form in _FORMS if form.view != "confidence" or _gives_confidence(chosen)]
        form = choose(request.headers.get("accept"), forms)
        uploads = await read_images(request, max_bytes=settings.max_bytes, timeout=settings.body_timeout)
        loop = asyncio.get_running_loop()
        until = began + (timeout or settings.timeout)
        # what will be refused is refused before it is decoded
        sizes = [size_of(upload.content, max_pixels=settings.max_pixels) for upload in uploads.files]
        pixels = sum(height * width for height, width in sizes)
        if pixels > settings.max_pixels:
            raise RequestError(413, f"the images have {pixels} pixels; at most {settings.max_pixels} in all are taken")
        jobs = chosen.admit([(1, size) for size in sizes], until - loop.time())

        async def in_time(work: Callable[[], _T]) -> _T:
            """Let a decoder work, and wait for it, and for a free one, no longer than the answer is wanted."""
            try:
                async with asyncio.timeout_at(until):
                    return await loop.run_in_executor(context.pool, work)
            except TimeoutError as cause:
                raise RequestError(504, f"{chosen.name}: the request timed out waiting for a decoder; {_LATE}") from cause

        async def look(upload: Upload, job: Job) -> _Found:
            image = await in_time(partial(decode, upload.content, max_pixels=settings.max_pixels))
            try:
                seen = _Seen(image, await chosen.infer(image[None], job=job))
                return await in_time(partial(_FORMS[form], seen, chosen.classes)), seen.labels.shape
            finally:
                image = seen = None  # type: ignore[assignment] # an error would keep this frame, and what is in it

        looks = [look(upload, job) for upload, job in zip(uploads.files, jobs, strict=True)]
        try:
            found = await _unless_gone(_all_of(looks), request)
        finally:
            for job in jobs:
                chosen.forget(job)
        headers = provenance(chosen) | {"Vary": "Accept"}
        if not uploads.single:
            answer = await loop.run_in_executor(context.pool, _several, found, uploads.files, form)
            return Response(answer, media_type=_JSON, headers=headers)
        [(encoded, shape)] = found
        if isinstance(encoded, dict):
            encoded = json.dumps(encoded, separators=(",", ":")).encode()
        return Response(encoded, media_type=form.media_type, headers=headers | {"X-Ddcat-Shape": f"{shape[0]}, {shape[1]}"})

    return routes


async def _unless_gone(work: Coroutine[Any, Any, list[_Found]], request: Request) -> list[_Found]:
    """Return what the work gives; where the client goes, end the work and raise ClientDisconnect."""
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
        del either, working  # an error would keep this frame, and they would keep the error: a circle, with all images


async def _all_of(looks: Sequence[Coroutine[Any, Any, _Found]]) -> list[_Found]:
    tasks = [asyncio.ensure_future(look) for look in looks]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:  # where one is refused, nobody waits for the others
            task.cancel()
        tasks.clear()  # as above


def _several(found: Sequence[_Found], uploads: Sequence[Upload], form: Form) -> bytes:
    results = []
    for (encoded, shape), upload in zip(found, uploads, strict=True):
        about: dict[str, Any] = {"filename": upload.filename, "size": list(shape)}
        if isinstance(encoded, dict):
            results.append(about | encoded)
        else:
            results.append(about | {"media_type": str(form), "data": base64.b64encode(encoded).decode("ascii")})
    return json.dumps({"results": results}, separators=(",", ":")).encode()


def _choose(models: Models, name: str | None, version: str | None) -> ServedModel:
    if name is None and len(models) > 1:
        raise RequestError(400, f"several models are served: choose one with ?model=, of {', '.join(models)}")
    return find(models, next(iter(models)) if name is None else name, version)


def _gives_confidence(model: ServedModel) -> bool:
    return any(entry.name == "confidence" for entry in model.engine.outputs)


def _confidence(outputs: Outputs) -> npt.NDArray[np.float32]:
    assert outputs.confidence is not None  # else the form is not offered
    first: npt.NDArray[np.float32] = outputs.confidence[0]
    return first
