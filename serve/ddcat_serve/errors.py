"""
Errors that ddcat_serve raises on purpose.

    ServeError
    └── RequestError        a request that cannot be answered, with its HTTP status

Engines raise those of `ddcat.engines.errors`, workers subclasses of these (inference/jobs.py).
"""

import contextlib
import reprlib
from collections.abc import Iterator, Mapping, Sequence

from ddcat.engines.errors import InputError
from ddcat.errors import DdcatError

__all__ = ["RequestError", "ServeError", "naming_files", "quoted"]

_MAX_LENGTH = 100  # characters of a client's value that a message repeats
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _MAX_LENGTH


class ServeError(DdcatError):
    """Base of all errors that ddcat_serve raises on purpose."""


class RequestError(ServeError):
    """
    A request that cannot be answered; its message is for the client: what is wrong, and what to do.

    Its HTTP status is 400..499, or 503 and 504 if another server, or the same one later, could answer. It may have headers for
    the response, such as Retry-After.
    """

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.headers = dict(headers or {})


def quoted(value: object) -> str:
    """Return the repr of a client's value for a message, at most 100 characters."""
    text = _SHORT.repr(value)
    return text if len(text) <= _MAX_LENGTH else f"{text[: _MAX_LENGTH - 3]}..."


@contextlib.contextmanager
def naming_files(sizes: Sequence[tuple[int, int]], resized: Sequence[tuple[int, int]]) -> Iterator[None]:
    """Add the (height, width) of an image's file to an InputError that names only the size to which it is resized."""
    try:
        yield
    except InputError as error:
        for (height, width), (down, across) in zip(sizes, resized, strict=True):
            refused = f"Image is {across} x {down};"
            if (height, width) != (down, across) and str(error).startswith(refused):
                said = f"{refused[:-1]} once it is resized from {width} x {height};"
                raise InputError(str(error).replace(refused, said)) from None
        raise
