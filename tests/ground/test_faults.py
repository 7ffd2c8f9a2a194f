"""What others' exceptions say becomes one line."""

from pathlib import Path

import pytest
from pydantic import BaseModel, ValidationError, model_validator

from ddcat.faults import first_fault, first_line, printable


class Pair(BaseModel):
    low: int
    high: int

    @model_validator(mode="after")
    def _ordered(self) -> "Pair":
        if self.low > self.high:
            raise ValueError("low is above high")
        return self


class Pairs(BaseModel):
    pairs: list[Pair]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"pairs": [{"low": 0, "high": 1}, {"high": "many"}]}', "pairs.1.low: Field required"),  # and the second is not said
        ('{"pairs": [{"low": 2, "high": 1}]}', "pairs.0: Value error, low is above high"),
        ("[]", "Input should be an object"),
    ],
)
def test_the_first_wrong_entry_is_named_and_what_is_wrong_with_it(content: str, said: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Pairs.model_validate_json(content)
    assert first_fault(caught.value) == said


@pytest.mark.parametrize(
    ("message", "said"), [("one line", "one line"), ("\n  first \r\nsecond", "first"), ("", "OSError"), (" \n", "OSError")]
)
def test_of_a_message_the_first_line_and_of_none_the_exception(message: str, said: str) -> None:
    assert first_line(OSError(message)) == said


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ünï [code] ✓", "plain ünï [code] ✓"),
        ("a\nb\r\tc\x1b[2J\x7f\x9b", r"a\x0ab\x0d\x09c\x1b[2J\x7f\x9b"),
        ("\u202egnp.exe\u2066\u2028", r"\u202egnp.exe\u2066\u2028"),
        (b"caf\xe9".decode(errors="surrogateescape"), r"caf\xe9"),
        ("\ud800", r"\ud800"),
        (Path("a/b"), "a/b"),
    ],
)
def test_what_others_wrote_is_one_printable_line(text: object, shown: str) -> None:
    assert printable(text) == shown
    assert len(shown.encode().splitlines()) == 1


def test_a_text_that_is_too_long_loses_its_middle() -> None:
    assert printable("x" * 5000 + "end") == "x" * 150 + "..." + "x" * 147 + "end"
    assert printable("abc", 3) == "abc"
