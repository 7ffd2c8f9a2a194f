"""
What ddcat_serve raises on purpose.

    ServeError
    ├── EngineError         a runtime that is missing, or a graph that is not what its manifest says
    │   ├── InputError      images that the engine does not take
    │   ├── LateError       a request whose time was over before its turn came   (worker.py)
    │   ├── HungError       an engine that did not come back                     (worker.py)
    │   └── StoppedError    a worker that takes no requests                      (worker.py)
    └── RequestError        a request that cannot be answered, with its HTTP status
"""

import reprlib
from collections.abc import Mapping

from ddcat.errors import DdcatError

__all__ = ["EngineError", "InputError", "RequestError", "ServeError", "quoted"]

_LONGEST = 100  # characters of a client's value that a message repeats
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _LONGEST


class ServeError(DdcatError):
    """Base of what ddcat_serve raises on purpose."""


class EngineError(ServeError):
    """A runtime that is not installed, a file that it does not load, or a graph that is not what its manifest says."""


class InputError(EngineError):
    """Images of a type, rank or size that the engine does not take; refused before the runtime sees them."""


class RequestError(ServeError):
    """
    A request that cannot be answered.

    Parameters
    ----------
    status : int
        HTTP status of the answer: 400..499, or 503 and 504 where another server, or another moment, would answer.
    message : str
        For the client: what is wrong with the request, and what to do.
    headers : mapping of str to str
        Of the answer, such as Retry-After.
    """

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.headers = dict(headers or {})


def quoted(value: object) -> str:
    """Return a client's value as a message repeats it: its repr, at most 100 characters of it."""
    text = _SHORT.repr(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
