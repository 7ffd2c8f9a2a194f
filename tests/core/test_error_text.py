"""What others' exceptions say becomes one line."""

import pytest
from pydantic import BaseModel, ValidationError, model_validator

from ddcat.error_text import first_line, first_validation_error


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
        ('{"pairs": [{"low": 2, "high": 1}]}', "pairs.0: low is above high"),
        ("[]", "Input should be an object"),
    ],
)
def test_the_first_wrong_entry_is_named_and_what_is_wrong_with_it(content: str, said: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Pairs.model_validate_json(content)
    assert first_validation_error(caught.value) == said


@pytest.mark.parametrize(
    ("message", "said"), [("one line", "one line"), ("\n  first \r\nsecond", "first"), ("", "OSError"), (" \n", "OSError")]
)
def test_of_a_message_the_first_line_and_of_none_the_exception(message: str, said: str) -> None:
    assert first_line(OSError(message)) == said
