"""What all routes of a server share."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import msgspec
from starlette.responses import JSONResponse

from ddcat_serve.http.access_control import Guard
from ddcat_serve.http.byte_budget import Room
from ddcat_serve.inference.model_registry import Models, ServedModel
from ddcat_serve.observe.metrics import Metrics
from ddcat_serve.settings import Settings

__all__ = ["ERRORS", "PROVENANCE", "Context", "Json", "provenance"]

_SCHEMA = {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}}
_CONTENT = {"application/json": {"schema": _SCHEMA, "example": {"error": "what is wrong, and what to do"}}}
_MEANINGS = {
    400: "The request is not what it should be.",
    401: "The API key is missing or another one.",
    404: "There is no such model.",
    406: "No form that is accepted can be given.",
    408: "The headers or the body did not come in time.",
    413: "It is too large.",
    415: "It is of another kind.",
    421: "The server does not answer to this Host.",
    429: "It could not be answered in time, or the client asks too often: Retry-After says when.",
    431: "Its headers are too long.",
    500: "The engine failed.",
    501: "It has a Transfer-Encoding other than chunked.",
    503: "Nothing can be answered now, or too much is in progress.",
    504: "Its time was over before its turn came.",
}
# the answers that are errors, for OpenAPI
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"description": meaning, "content": _CONTENT} for status, meaning in _MEANINGS.items()
}

PROVENANCE = ("X-Ddcat-Model", "X-Ddcat-Version", "X-Ddcat-Bundle", "X-Ddcat-Passport")


class Json(JSONResponse):
    """JSON of what a bundle says, in which a number that is not finite is null: JSON has no NaN."""

    def render(self, content: Any) -> bytes:
        """Encode the content."""
        return msgspec.json.encode(content)


@dataclass
class Context:
    """
    What one server has, whatever it is asked by.

    Attributes
    ----------
    models : Models
        Loaded, and closed by whoever loaded them.
    settings : Settings
    guard : Guard
        Counts the requests of a client, whether they come by HTTP or by gRPC.
    pool : ThreadPoolExecutor
        Threads that decode images and encode masks, beside those of the engines.
    metrics : Metrics
        Count the requests, by HTTP and gRPC, and what the engines did.
    room : Room
        For the bodies of all requests together.
    draining : bool
        Whether the server was told to stop.
    """

    models: Models
    settings: Settings
    guard: Guard
    pool: ThreadPoolExecutor
    metrics: Metrics
    room: Room
    draining: bool = False

    @property
    def served(self) -> list[ServedModel]:
        """All versions of all models."""
        return [model for versions in self.models.values() for model in versions.values()]

    @property
    def ready(self) -> bool:
        """Whether all models take requests."""
        return not self.draining and all(model.ready for model in self.served)

    @property
    def live(self) -> bool:
        """Whether every engine works, or is being started again."""
        return all(model.worker.state != "broken" for model in self.served)


def provenance(model: ServedModel) -> dict[str, str]:
    """Say in headers which model answered, and what the gate said of it."""
    passport = model.passport.passport
    verdict = "none" if passport is None else passport.verdict
    return dict(zip(PROVENANCE, (model.name, model.version, model.bundle.digest, verdict), strict=True))
