"""An image of a request, from its file to its mask in the form that the client accepts, before the request's deadline."""

import asyncio
import dataclasses
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from ddcat.bands import displayed
from ddcat.classes import IGNORE_INDEX, Classes
from ddcat.confidence import abstained
from ddcat.engines import Outputs
from ddcat.preprocess import FileRule, preprocess, restore
from ddcat_serve.errors import RequestError
from ddcat_serve.http.content_negotiation import Representation
from ddcat_serve.http.decoding import decode
from ddcat_serve.http.encoding import encode_confidence, encode_labels, encode_mask, encode_overlay, encode_rle
from ddcat_serve.http.server_state import ServerState
from ddcat_serve.http.tiffs import encode_tiff
from ddcat_serve.inference.jobs import Job
from ddcat_serve.inference.large_images import QueuedInference
from ddcat_serve.inference.served_model import ServedModel

__all__ = ["JSON", "PNG", "RAW", "REPRESENTATIONS", "TIFF", "Encoded", "Place", "Segmentation"]

PNG, TIFF, RAW, JSON = "image/png", "image/tiff", "application/octet-stream", "application/json"
_TIMEOUT_HINT = "use a longer timeout, or try again later"

_T = TypeVar("_T")
_N = TypeVar("_N", np.uint8, np.float32)
U8 = npt.NDArray[np.uint8]


class _Prediction(NamedTuple):
    """The engine's outputs for an image, at the size of its file; its file, and how it is read; and its pixels, if shown."""

    content: bytes
    rule: FileRule
    image: U8 | None
    labels: U8
    confidence: npt.NDArray[np.float32] | None


Payload = bytes | dict[str, Any]
Place = Job | QueuedInference  # of an image that was admitted: whole, or cut into tiles
Encoded = tuple[Payload, tuple[int, int]]  # and the height and width of the mask

_ENCODERS: dict[Representation, Callable[[_Prediction, Classes], Payload]] = {
    Representation(PNG): lambda seen, classes: encode_mask(seen.labels, classes),
    Representation(PNG, "labels"): lambda seen, classes: encode_labels(seen.labels),
    Representation(PNG, "overlay"): lambda seen, classes: encode_overlay(seen.labels, displayed(_given(seen.image)), classes),
    Representation(PNG, "confidence"): lambda seen, classes: encode_confidence(_given(seen.confidence)),
    Representation(RAW): lambda seen, classes: np.ascontiguousarray(seen.labels).tobytes(),
    Representation(TIFF): lambda seen, classes: encode_tiff(seen.labels, classes, seen.content, seen.rule),
    Representation(JSON): lambda seen, classes: encode_rle(seen.labels, classes),
}
REPRESENTATIONS = tuple(_ENCODERS)


@dataclasses.dataclass
class Segmentation:
    """What the images of one request share."""

    state: ServerState
    model: ServedModel
    rule: FileRule  # for their files
    representation: Representation  # of the masks
    deadline: float  # by the clock of the event loop
    abstain: bool  # whether pixels are left unanswered where the model is not confident

    async def one(self, content: bytes, place: Place) -> Encoded:
        """Segment an image file, which was admitted; EngineError or RequestError."""
        if isinstance(place, Job):
            return await self._whole(content, place)
        return await self._in_pool(partial(self._label_tiles, content, place), self.state.cutters)

    async def _whole(self, content: bytes, job: Job) -> Encoded:
        image = await self._in_pool(partial(self._decode, content))
        try:
            prepared = await self._in_pool(partial(preprocess, image, self.rule))
            if self.representation.view != "overlay":
                image = None  # type: ignore[assignment] # while its input is queued
            outputs = await self.model.infer(prepared.pixels[None], job=job)
            size, prepared = prepared.size, None  # type: ignore[assignment]
            if self.abstain:
                outputs = await self._in_pool(partial(self._abstaining, outputs))
            return await self._in_pool(partial(self._encode, content, outputs, image, size)), size
        finally:
            image = prepared = outputs = None  # type: ignore[assignment] # the traceback of an error would keep this frame

    def _label_tiles(self, content: bytes, queued: QueuedInference) -> Encoded:
        """Do all in one thread: so few images are in memory at once."""
        image = self._decode(content)
        prepared = preprocess(image, self.rule)
        if self.representation.view != "overlay":
            image = None  # type: ignore[assignment]
        outputs = queued.outputs(prepared.pixels)
        if self.abstain:
            outputs = self._abstaining(outputs)
        return self._encode(content, outputs, image, prepared.size), prepared.size

    async def _in_pool(self, work: Callable[[], _T], pool: ThreadPoolExecutor | None = None) -> _T:
        """Run work in a pool; raise RequestError (504) if it has not ended by the deadline."""
        try:
            async with asyncio.timeout_at(self.deadline):
                return await asyncio.get_running_loop().run_in_executor(pool or self.state.pool, work)
        except TimeoutError as cause:
            what = "a decoder" if pool is None else "its tiles"
            raise RequestError(504, f"{self.model.name}: the request timed out waiting for {what}; {_TIMEOUT_HINT}") from cause

    def _decode(self, content: bytes) -> U8:
        return decode(content, self.rule, max_pixels=self.state.settings.max_pixels)

    def _abstaining(self, outputs: Outputs) -> Outputs:
        rule = self.model.bundle.manifest.abstention
        assert rule is not None  # as checked
        labels = abstained(outputs.labels, _given(outputs.confidence), rule.threshold)
        left_out = int((labels == IGNORE_INDEX).sum())
        self.state.metrics.count_abstained(self.model.name, self.model.version, labels.size, left_out)
        return dataclasses.replace(outputs, labels=labels)

    def _encode(self, content: bytes, outputs: Outputs, image: U8 | None, size: tuple[int, int]) -> Payload:
        confidence = None if outputs.confidence is None else restore(outputs.confidence[0], size)
        prediction = _Prediction(content, self.rule, image, restore(outputs.labels[0], size), confidence)
        return _ENCODERS[self.representation](prediction, self.model.classes)


def _given(values: npt.NDArray[_N] | None) -> npt.NDArray[_N]:
    assert values is not None  # otherwise the representation is not offered, or the image was kept
    return values
