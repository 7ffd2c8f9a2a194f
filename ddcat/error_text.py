"""Exceptions of other libraries, in one line for the user."""

from collections.abc import Sequence
from typing import Any, Protocol

from ddcat.text import printable

__all__ = ["first_line", "first_validation_error"]

_MOST = 2000  # characters: a message may quote long input


class _Refusal(Protocol):
    """pydantic's ValidationError, and what is built like it."""

    def errors(self) -> Sequence[Any]: ...


def first_validation_error(error: _Refusal) -> str:
    """Return the first wrong entry and the reason, such as ``engine.file: Field required``."""
    first = error.errors()[0]
    why = first["msg"].removeprefix("Value error, ")  # pydantic's prefix for errors of our own checks
    return printable(": ".join(filter(None, (".".join(map(str, first["loc"])), why))), _MOST)


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message, or its name where it has no message."""
    lines = str(error).strip().splitlines()
    return printable(lines[0].rstrip(), _MOST) if lines else type(error).__name__
