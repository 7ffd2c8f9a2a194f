"""Text of others never acts on a terminal."""

import pytest

from ddcat.text import one_line, printable, shortened


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("road", "road"),
        ("Straße, 道路, дорога", "Straße, 道路, дорога"),
        ("\x1b[2J\x1b]0;title\x07", r"\x1b[2J\x1b]0;title\x07"),
        ("one\ntwo\r\tthree", r"one\ntwo\r\tthree"),
        ("\x9b2J", r"\x9b2J"),  # the same without ESC
        ("abc\u202edcba", r"abc\u202edcba"),  # reads from right to left
        ("a\u200bb\u2028c", r"a\u200bb\u2028c"),
        ("\ud800", r"\ud800"),
        ("\x7f", r"\x7f"),
    ],
)
def test_what_a_terminal_acts_on_is_written_out(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_a_long_text_is_cut() -> None:
    assert shortened("x" * 200) == "x" * 200
    assert one_line("x" * 10**6, 10) == "xxxxxxxxxx... (1000000 characters)"
