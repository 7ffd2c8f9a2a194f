"""
Result files: strict, and complete enough that every table, plot and page is made from them alone.

A figure that has no value (the IoU of a class that is neither labelled nor predicted) is null: NaN is not JSON.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from ddcat.atomic_files import read_json
from ddcat.error_text import first_validation_error
from ddcat_bench.errors import BenchError

__all__ = ["Result", "read_result", "to_json"]

Result = TypeVar("Result", bound=BaseModel)


def to_json(result: BaseModel) -> str:
    """Write as JSON that a person can read: whatever holds numbers alone takes one line for each of its parts."""
    return _pretty(result.model_dump(mode="json"), "") + "\n"


def read_result(path: Path, kind: type[Result]) -> Result:
    """
    Read a result file.

    Raises BenchError if it cannot be read, or is a result of another kind or version: naming the first entry that does not fit.
    """
    content = json.dumps(read_json(path, BenchError))  # strict types are those of JSON, where a tuple is a list
    try:
        return kind.model_validate_json(content)
    except ValidationError as cause:
        raise BenchError(
            f"{path}: expected a {kind.__name__} of this version of ddcat: {first_validation_error(cause)}"
        ) from cause


def _pretty(value: Any, indent: str) -> str:
    inner = indent + "  "
    if isinstance(value, dict) and value:
        parts = [f"{json.dumps(key)}: {_pretty(part, inner)}" for key, part in value.items()]
        return _lines("{", parts, "}", indent)
    if isinstance(value, list) and any(isinstance(part, dict | list) for part in value):
        flat = not any(isinstance(part, dict) for part in value)
        parts = [json.dumps(part, allow_nan=False) if flat else _pretty(part, inner) for part in value]
        return _lines("[", parts, "]", indent)
    return json.dumps(value, allow_nan=False)


def _lines(opening: str, parts: Sequence[str], closing: str, indent: str) -> str:
    return opening + ",".join(f"\n{indent}  {part}" for part in parts) + f"\n{indent}{closing}"
