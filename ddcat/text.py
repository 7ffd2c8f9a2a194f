"""Text of others, such as a file's name or a class's: shown as it is written, not acted on by a terminal."""

import unicodedata

__all__ = ["one_line", "printable", "shortened"]

# control characters; formats, which reorder text or take no room; surrogates; separators of lines and paragraphs
_ACTS = {"Cc", "Cf", "Cs", "Zl", "Zp"}
_LONGEST = 200


def printable(text: str) -> str:
    r"""Escape every character that a terminal acts on or that ends a line: ESC becomes ``\x1b``, a line feed ``\n``."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        character.encode("unicode_escape").decode() if unicodedata.category(character) in _ACTS else character
        for character in text
    )


def shortened(text: str, most: int = _LONGEST) -> str:
    """Cut a text of unlimited length to about `most` characters, and say that it was cut."""
    return text if len(text) <= most else f"{text[:most]}... ({len(text)} characters)"


def one_line(text: str, most: int = _LONGEST) -> str:
    """Give a text of others as a part of a message: short, and without anything that a terminal acts on."""
    return printable(shortened(text, most))
