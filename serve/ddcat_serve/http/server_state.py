"""State that all routes of a server share, and parts that all of their responses share."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.responses import JSONResponse

from ddcat_serve.http.access_control import AccessControl
from ddcat_serve.http.byte_budget import ByteBudget
from ddcat_serve.inference.model_registry import Models
from ddcat_serve.inference.repository import Repository
from ddcat_serve.inference.served_model import ServedModel
from ddcat_serve.observe.metrics import Metrics
from ddcat_serve.settings import Settings

if TYPE_CHECKING:
    from ddcat_serve.http.job_runner import JobRunner

__all__ = ["ERRORS", "PROVENANCE_HEADERS", "FiniteJson", "ServerState", "provenance_headers"]

_SCHEMA = {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}}
_CONTENT = {"application/json": {"schema": _SCHEMA, "example": {"error": "what is wrong, and what to do"}}}
_MEANINGS = {
    400: "The request is malformed.",
    401: "The API key is missing or wrong.",
    403: "The server does not load or unload models by requests.",
    404: "No such model.",
    406: "The server cannot produce any of the accepted representations.",
    408: "The headers or the body did not arrive in time.",
    409: "Another request loads or unloads the model; or the job has no result.",
    413: "The request is too large.",
    415: "The body has an unsupported type.",
    421: "The server does not answer to this Host.",
    429: "The server cannot answer in time, or the client sends too many requests: see Retry-After.",
    431: "The headers are too long.",
    500: "The engine failed.",
    501: "Transfer-Encoding is not chunked.",
    503: "The server is not ready, or handles too many requests.",
    504: "The request's deadline expired while it was queued.",
    507: "There is no room on the server's disk.",
}
# error responses, for OpenAPI
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"description": meaning, "content": _CONTENT} for status, meaning in _MEANINGS.items()
}

PROVENANCE_HEADERS = ("X-Ddcat-Model", "X-Ddcat-Version", "X-Ddcat-Bundle", "X-Ddcat-Passport")


class FiniteJson(JSONResponse):
    """JSON response in which a number that is not finite becomes null, since JSON has no NaN."""

    def render(self, content: Any) -> bytes:
        """Encode the content."""
        return msgspec.json.encode(content)


@dataclass
class ServerState:
    """State of one server, shared by HTTP and gRPC."""

    models: Models  # which their loader closes; they may change while the server runs
    settings: Settings
    access_control: AccessControl
    pool: ThreadPoolExecutor  # decodes images and encodes masks; each engine has a thread of its own
    cutters: ThreadPoolExecutor  # answers images that are cut, each thread one at a time: as many bound their memory
    metrics: Metrics
    byte_budget: ByteBudget  # for the bodies of all requests in progress
    repository: Repository | None = None  # loads and unloads the models; None: they stay as they are
    jobs: "JobRunner | None" = None  # None: the server keeps none
    draining: bool = False  # whether the server is shutting down

    @property
    def served(self) -> list[ServedModel]:
        """All versions of all models."""
        return [model for versions in self.models.values() for model in versions.values()]

    @property
    def ready(self) -> bool:
        """Whether all models accept requests; false if a repository's have all been unloaded."""
        there = bool(self.served) or self.repository is None
        return not self.draining and there and all(model.ready for model in self.served)

    @property
    def live(self) -> bool:
        """Whether every engine works or is being restarted."""
        return all(model.worker.state != "broken" for model in self.served)


def provenance_headers(model: ServedModel) -> dict[str, str]:
    """Return headers that name the model, its bundle and the gate's verdict."""
    passport = model.passport.passport
    verdict = "none" if passport is None else passport.verdict
    return dict(zip(PROVENANCE_HEADERS, (model.name, model.version, model.bundle.digest, verdict), strict=True))
