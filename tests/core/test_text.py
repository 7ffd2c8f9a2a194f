"""Text of others never acts on a terminal."""

from pathlib import Path

import pytest

from ddcat.text import printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("road", "road"),
        ("Straße, 道路, дорога", "Straße, 道路, дорога"),
        ("می‌خواهم 👩‍🚒", "می‌خواهم 👩‍🚒"),  # joiners are a part of words
        ("\x1b[2J\x1b]0;title\x07", r"\x1b[2J\x1b]0;title\x07"),
        ("one\ntwo\r\tthree", r"one\x0atwo\x0d\x09three"),
        ("\x9b2J", r"\x9b2J"),  # the same without ESC
        ("abc\u202edcba", r"abc\u202edcba"),  # reads from right to left
        ("a\u200bb\u2028c", r"a\u200bb\u2028c"),
        ("\ud800", r"\ud800"),
        (b"caf\xe9".decode(errors="surrogateescape"), r"caf\xe9"),
        ("\x7f", r"\x7f"),
        (Path("x\ny"), r"x\x0ay"),
    ],
)
def test_what_a_terminal_acts_on_is_written_out(text: object, shown: str) -> None:
    assert printable(text) == shown


def test_of_a_long_text_the_middle_is_left_out() -> None:
    assert printable("x" * 300) == "x" * 300
    assert printable("a" * 10**6 + "b" * 10**6, 10) == "aaaaa...bbbbb"
    assert printable("x" * 10**4, None) == "x" * 10**4
