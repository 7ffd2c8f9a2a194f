"""What the exceptions of others say, in the one line that a user is shown."""

import unicodedata
from collections.abc import Sequence
from typing import Any, Protocol

from ddcat.text import one_line

__all__ = ["first_fault", "first_line", "printable"]

_DIRECTIONS = set("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")  # text is shown in another order
_CONTROLS = {"Cc", "Cs", "Zl", "Zp"}


_MOST = 2000  # characters: a message may repeat what is wrong


class _Refusal(Protocol):
    """pydantic's ValidationError, and what is built like it."""

    def errors(self) -> Sequence[Any]: ...


def first_fault(error: _Refusal) -> str:
    """Say which entry is wrong and why, ``engine.file: Field required``; the first one, and of the whole only why."""
    first = error.errors()[0]
    return one_line(": ".join(filter(None, (".".join(map(str, first["loc"])), first["msg"]))), _MOST)


def first_line(error: BaseException) -> str:
    """Give the first line of a message that has any, or the name of the exception."""
    lines = str(error).strip().splitlines()
    return one_line(lines[0].rstrip(), _MOST) if lines else type(error).__name__


def printable(text: object, most: int = 300) -> str:
    """
    Return a text that others wrote, such as a file's name, fit for a terminal and for one line.

    Parameters
    ----------
    text : object
        Its `str` is taken. Control characters, line ends, marks of direction and bytes that are not UTF-8 become escapes.
    most : int
        Characters to keep; of a longer text the middle is left out.
    """
    shown = str(text)
    if len(shown) > most:
        shown = f"{shown[: most // 2]}...{shown[len(shown) - most // 2 :]}"
    return "".join(_escaped(c) if c in _DIRECTIONS or unicodedata.category(c) in _CONTROLS else c for c in shown)


def _escaped(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # how Python holds a byte of a file's name that is not UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
