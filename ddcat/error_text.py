"""Exceptions of other libraries, in one line for the user."""

import difflib
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from ddcat.text import printable

__all__ = ["first_line", "first_validation_error", "unknown_key"]

_MOST = 2000  # characters: a message may quote long input


class _Refusal(Protocol):
    """pydantic's ValidationError, and what is built like it."""

    def errors(self) -> Sequence[Any]: ...


def first_validation_error(error: _Refusal) -> str:
    """Return the first wrong entry and the reason, such as ``engine.file: Field required``."""
    first = error.errors()[0]
    why = first["msg"].removeprefix("Value error, ")  # pydantic's prefix for errors of our own checks
    return printable(": ".join(filter(None, (".".join(map(str, first["loc"])), why))), _MOST)


def unknown_key(error: _Refusal, keys: Iterable[str]) -> str | None:
    """
    Describe an unknown key and name the nearest of `keys`; None for any other fault.

    It comes before other faults, for a key that is missing is often the one that was misspelt.
    """
    unknown = next((fault["loc"] for fault in error.errors() if fault["type"] == "extra_forbidden"), None)
    if unknown is None:
        return None
    name, known = printable(".".join(map(str, unknown)), _MOST), list(keys)
    nearest = difflib.get_close_matches(str(unknown[-1])[:100], known, n=1)
    return f"unknown key {name}: " + (f"did you mean {nearest[0]}?" if nearest else f"the keys are {', '.join(known)}")


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message, or its name where it has no message."""
    lines = str(error).strip().splitlines()
    return printable(lines[0].rstrip(), _MOST) if lines else type(error).__name__
