"""Read JSON strictly: a key that occurs twice is refused, because programs differ on which of the two counts."""

import json
from collections.abc import Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from ddcat.error_text import first_line, first_validation_error
from ddcat.text import printable

__all__ = ["parse_json", "parse_model"]

Model = TypeVar("Model", bound=BaseModel)


def parse_json(text: str | bytes) -> Any:
    """
    Read JSON.

    Raises
    ------
    ValueError
        With the fault, in one line.
    """
    try:
        return json.loads(text, object_pairs_hook=_table)
    except (ValueError, RecursionError) as cause:  # the second: of thousands of brackets
        raise ValueError(first_line(cause)) from cause


def parse_model(kind: type[Model], text: str | bytes) -> Model:
    """
    Read JSON of a known schema.

    Raises
    ------
    ValueError
        With the first entry that does not fit, in one line.
    """
    parse_json(text)
    try:
        return kind.model_validate_json(text)
    except ValidationError as cause:
        raise ValueError(first_validation_error(cause)) from cause


def _table(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for place, key in enumerate(keys) if key in keys[:place])
        raise ValueError(f"the key {printable(twice, 100)!r} occurs twice, expected once")
    return table
