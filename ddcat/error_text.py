"""What the exceptions of others say, in the one line that a user is shown."""

from collections.abc import Sequence
from typing import Any, Protocol

from ddcat.text import printable

__all__ = ["first_line", "first_validation_error"]

_MOST = 2000  # characters: a message may repeat what is wrong


class _Refusal(Protocol):
    """pydantic's ValidationError, and what is built like it."""

    def errors(self) -> Sequence[Any]: ...


def first_validation_error(error: _Refusal) -> str:
    """Say which entry is wrong and why, ``engine.file: Field required``; the first one, and of the whole only why."""
    first = error.errors()[0]
    why = first["msg"].removeprefix("Value error, ")  # pydantic's word for what a check of ours raises
    return printable(": ".join(filter(None, (".".join(map(str, first["loc"])), why))), _MOST)


def first_line(error: BaseException) -> str:
    """Give the first line of a message that has any, or the name of the exception."""
    lines = str(error).strip().splitlines()
    return printable(lines[0].rstrip(), _MOST) if lines else type(error).__name__
