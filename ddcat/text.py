"""Show text of others, such as the name of a file or a class, without effects on the terminal."""

import unicodedata

__all__ = ["printable"]

_DIRECTIONS = set("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")  # text is shown in another order
_UNSEEN = set("\u200b\u2060\ufeff")  # without a width: two names look like one
_CONTROLS = {"Cc", "Cs", "Zl", "Zp"}


def printable(text: object, most: int | None = 300) -> str:
    r"""
    Return a text that others wrote, such as a file's name, fit for a terminal and for one line.

    Parameters
    ----------
    text : object
        Its `str` is taken. Control characters, line ends, marks of direction and bytes that are not UTF-8 become escapes: ESC
        becomes ``\x1b``, a line feed ``\x0a``.
    most : int or None
        Characters to keep; of a longer text the middle is left out. None: all of it.
    """
    shown = str(text)
    if most is not None and len(shown) > most:
        shown = f"{shown[: most // 2]}...{shown[len(shown) - most // 2 :]}"
    if shown.isascii() and shown.isprintable():
        return shown
    return "".join(_escaped(c) if _acts(c) else c for c in shown)


def _acts(character: str) -> bool:
    return character in _DIRECTIONS or character in _UNSEEN or unicodedata.category(character) in _CONTROLS


def _escaped(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # how Python holds a byte of a file's name that is not UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
