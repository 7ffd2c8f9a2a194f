"""`/v1/jobs`: images whose masks take longer than a client waits. They survive a restart of the server."""

import asyncio
import contextlib
import logging
import os
import re
import sqlite3
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import Response

from ddcat.atomic_files import translate_os_errors
from ddcat.engines.checks import check_size
from ddcat.error_text import first_line
from ddcat.errors import WriteError
from ddcat.geotiff import is_tiff
from ddcat.preprocess import network_size
from ddcat_serve.errors import RequestError, naming_files
from ddcat_serve.http.byte_ranges import RangedFile
from ddcat_serve.http.decoding import TIFF_AND_RESIZE, size_of
from ddcat_serve.http.job_runner import JobRunner
from ddcat_serve.http.job_store import JobRecord
from ddcat_serve.http.request_body import body_pieces
from ddcat_serve.http.server_state import ERRORS, PROVENANCE_HEADERS, FiniteJson, ServerState, provenance_headers
from ddcat_serve.http.tiffs import read_scene
from ddcat_serve.inference.large_images import check_cut, most_blend_bytes
from ddcat_serve.inference.model_registry import choose_model
from ddcat_serve.inference.served_model import ServedModel, worker_errors_as_http
from ddcat_serve.settings import PREFIX, Settings

__all__ = ["router"]

_OFF = f"this server accepts no jobs: start it with --jobs FOLDER ({PREFIX}JOBS)"
_NAME = re.compile(r"[0-9a-f]{32}")
_MEDIA_TYPES = {"tif": "image/tiff", "png": "image/png"}
_STEP = 2**16  # bytes that arrive within the body timeout, at least
_PIECE = 2**20  # bytes that are written at once
_log = logging.getLogger(__name__)
_Value = TypeVar("_Value")
_HEAD = 4  # bytes of a file by which a TIFF is known

_BINARY = {"schema": {"type": "string", "format": "binary"}}
_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "One image file.",
        "content": dict.fromkeys(("image/tiff", "image/png", "image/jpeg", "image/webp"), _BINARY),
    }
}
_STATUS = {
    "type": "object",
    "required": ["id", "state", "progress"],
    "properties": {
        "id": {"type": "string"},
        "state": {"enum": ["queued", "running", "done", "failed"]},
        "progress": {"type": "number", "description": "Share of the image that is done."},
        "error": {"type": ["string", "null"], "description": "Why it failed."},
        "expires": {"type": ["string", "null"], "description": "When the job and its result are removed."},
    },
}
_SHOWN: dict[str, Any] = {"description": "The job.", "content": {"application/json": {"schema": _STATUS}}}
_GONE = {"description": "The job is removed."}
_NOT_MODIFIED = {"description": "The client has the mask already: it sent its ETag in If-None-Match."}
_RESULT: dict[str, Any] = {
    "description": "The mask: a GeoTIFF for a GeoTIFF, a palette PNG for other images, as `ddcat predict` writes them.",
    "content": dict.fromkeys(_MEDIA_TYPES.values(), _BINARY),
}


def router(state: ServerState) -> APIRouter:
    """Create the routes."""
    routes = APIRouter(tags=["Jobs"], responses=ERRORS)

    async def found(job: str) -> tuple[JobRunner, JobRecord]:
        jobs = _jobs(state)
        with _store_errors_as_http():
            record = await asyncio.to_thread(jobs.store.get, job) if _NAME.fullmatch(job) else None
        if record is None:
            raise _missing()
        return jobs, record

    @routes.post("/v1/jobs", status_code=202, responses={202: _SHOWN}, openapi_extra=_BODY)
    async def submit(
        request: Request,
        model: Annotated[str | None, Query(description="Name of the model; required if several are served.")] = None,
        version: Annotated[str | None, Query(description="Version of the model. Default: the last one.")] = None,
    ) -> Response:
        """
        Queue an image of any size: a GeoTIFF, JPEG, PNG or WebP file as the body.

        Location has the address of the job.
        """
        jobs = _jobs(state)
        choose_model(state.models, model, version)  # refuse before the body is read
        if request.headers.get("content-type", "").lower().startswith("multipart/"):
            raise RequestError(415, "the body is a form: send one image file as the body")
        with _store_errors_as_http():
            record, headers = await _accept(request, state, jobs, model, version)
        jobs.wake()
        return FiniteJson(_describe(record, jobs), 202, {"Location": f"/v1/jobs/{record.id}", **headers})

    @routes.get("/v1/jobs/{job}", response_class=Response, responses={200: _SHOWN})
    async def status(job: str) -> Response:
        """Say how far a job is."""
        jobs, record = await found(job)
        return FiniteJson(_describe(record, jobs))

    @routes.get("/v1/jobs/{job}/result", response_class=Response, responses={200: _RESULT, 304: _NOT_MODIFIED})
    async def result(job: str) -> Response:
        """Return the mask of a job that is done."""
        jobs, record = await found(job)
        if record.state == "failed":
            raise RequestError(409, f"the job failed: {record.error}")
        if record.state != "done":
            share = f"{jobs.progress(record):.0%} of it is done"
            raise RequestError(409, f"the job is {record.state}, {share}: try again later", {"Retry-After": "5"})
        path = jobs.store.result(record)
        try:
            found_there = path.stat()
        except FileNotFoundError:  # removed this moment
            raise _missing() from None
        about = (record.model, record.version, record.bundle, record.passport)
        headers = dict(zip(PROVENANCE_HEADERS, about, strict=True)) | {"X-Ddcat-Shape": f"{record.height}, {record.width}"}
        return RangedFile(path, headers=headers, media_type=_MEDIA_TYPES[record.suffix], stat_result=found_there)

    @routes.delete("/v1/jobs/{job}", status_code=204, response_class=Response, responses={204: _GONE})
    async def cancel(job: str) -> Response:
        """Cancel a job, or remove its result."""
        jobs, record = await found(job)
        with _store_errors_as_http():
            removed = await asyncio.to_thread(jobs.cancel, record.id)
        if not removed:
            raise _missing()
        return Response(status_code=204)

    return routes


def _jobs(state: ServerState) -> JobRunner:
    if state.jobs is None:
        raise RequestError(404, _OFF)
    return state.jobs


@contextlib.contextmanager
def _store_errors_as_http() -> Iterator[None]:
    """Answer what the disk or the table refuses without names of the server's files, which are in the log."""
    try:
        yield
    except (WriteError, OSError, sqlite3.Error) as cause:
        _log.error("jobs: the store cannot be used: %s", first_line(cause))
        raise RequestError(507, "the server cannot store or read jobs now (see its log): try again later") from cause


@contextlib.asynccontextmanager
async def _in_threads(place: contextlib.AbstractContextManager[_Value]) -> AsyncIterator[_Value]:
    """Enter and leave a context that may wait for the disk, or for another process's lock on the table."""
    value = await asyncio.to_thread(place.__enter__)
    try:
        yield value
    finally:
        await asyncio.to_thread(place.__exit__, None, None, None)


def _missing() -> RequestError:
    return RequestError(404, "there is no such job: it was deleted, it has expired, or another server has it")


async def _accept(
    request: Request, state: ServerState, jobs: JobRunner, model: str | None, version: str | None
) -> tuple[JobRecord, dict[str, str]]:
    """Store the image of a request and queue its job; return it, and the headers that name its model."""
    settings = state.settings
    async with _in_threads(jobs.store.upload()) as name:
        path = jobs.store.image(name)
        await _receive(request, path, settings)
        length = path.stat().st_size
        if length <= settings.max_bytes:  # it may be read at once
            request.state.held_bytes.take(length)
        chosen = choose_model(state.models, model, version)
        examine = partial(_examine, path, chosen, settings)
        (height, width), suffix = await asyncio.get_running_loop().run_in_executor(state.pool, examine)
        headers = provenance_headers(chosen)
        known_as, number, digest, verdict = (headers[header] for header in PROVENANCE_HEADERS)
        now = datetime.now(UTC).timestamp()
        record = JobRecord(name, "queued", known_as, number, digest, verdict, suffix, height, width, now)
        await asyncio.to_thread(jobs.store.add, record)
    return record, headers


async def _receive(request: Request, path: Path, settings: Settings) -> None:
    """Write the body to a file; of all that arrives only a piece is in memory."""
    loop, held = asyncio.get_running_loop(), request.state.held_bytes
    with translate_os_errors(path):
        file = await asyncio.to_thread(path.open, "wb", 0)
        with file:
            piece, step = bytearray(), 0
            try:
                async with asyncio.timeout(settings.body_timeout) as patience:
                    async for part in body_pieces(request, max_bytes=settings.job_bytes):
                        piece += part
                        step += len(part)
                        if step >= _STEP:
                            step = 0
                            patience.reschedule(loop.time() + settings.body_timeout)
                        if len(piece) >= _PIECE:
                            patience.reschedule(None)  # the disk's time is not the client's
                            await asyncio.to_thread(file.write, piece)
                            patience.reschedule(loop.time() + settings.body_timeout)
                            piece = bytearray()
                            held.give_back()
            except TimeoutError as cause:
                slow = f"the body arrives too slowly: expected {_STEP} bytes in {settings.body_timeout:g} s"
                raise RequestError(408, slow, {"Connection": "close"}) from cause
            await asyncio.to_thread(file.write, piece)
            held.give_back()
            await asyncio.to_thread(os.fsync, file.fileno())


def _examine(path: Path, model: ServedModel, settings: Settings) -> tuple[tuple[int, int], str]:
    """Return height and width of an image, and the suffix of its result; refuse it if the model would not take it."""
    rule = model.bundle.manifest.preprocessing
    with path.open("rb") as file:
        is_scene = is_tiff(file.read(_HEAD))
    if is_scene:
        size = _scene_size(path, model, settings)
    else:
        length = path.stat().st_size
        if length > settings.max_bytes:
            raise RequestError(
                413,
                f"the file has {length} bytes; expected at most {settings.max_bytes} for a JPEG, PNG or WebP: send a GeoTIFF",
            )
        size = size_of(path.read_bytes(), rule, max_pixels=settings.max_pixels)
    resized, least = network_size(size, rule), model.bundle.manifest.shapes.batch.minimum
    with naming_files([size], [resized]):
        if rule.cuts(*resized):
            calls = check_cut(model, resized, max_bytes=most_blend_bytes(settings))[:1]
        else:
            check_size(least, *resized, model.bundle.manifest.shapes)
            calls = [(least, resized)]
    with worker_errors_as_http(model.name):
        model.worker.check(calls, settings.max_timeout)
    return size, "tif" if is_scene else "png"


def _scene_size(path: Path, model: ServedModel, settings: Settings) -> tuple[int, int]:
    rule = model.bundle.manifest.preprocessing
    if rule.resize is not None:
        raise RequestError(415, TIFF_AND_RESIZE)
    with read_scene(str(path), rule) as scene:
        size = scene.height, scene.width
    if size[0] * size[1] > settings.job_pixels:
        raise RequestError(
            413, f"the image is {size[1]} x {size[0]} pixels; expected at most {settings.job_pixels} pixels in a job"
        )
    return size


def _describe(job: JobRecord, jobs: JobRunner) -> dict[str, Any]:
    return {
        "id": job.id,
        "state": job.state,
        "progress": jobs.progress(job),
        "model": job.model,
        "version": job.version,
        "bundle": job.bundle,
        "size": [job.height, job.width],
        "submitted": _iso(job.submitted),
        "ended": None if job.ended is None else _iso(job.ended),
        "expires": None if job.ended is None else _iso(job.ended + jobs.store.expiry),
        "error": job.error,
    }


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
