"""
What ddcat_serve raises on purpose.

    ServeError
    └── RequestError        a request that cannot be answered, with its HTTP status

An engine raises what `ddcat.engines.errors` has, and a worker kinds of it (worker.py).
"""

import reprlib
from collections.abc import Mapping

from ddcat.errors import DdcatError

__all__ = ["RequestError", "ServeError", "quoted"]

_LONGEST = 100  # characters of a client's value that a message repeats
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _LONGEST


class ServeError(DdcatError):
    """Base of what ddcat_serve raises on purpose."""


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
