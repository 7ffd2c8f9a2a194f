"""Building blocks for the schemas of files that ddcat writes and reads back."""

import math
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from ddcat.classes import LONGEST_NAME

__all__ = ["Count", "Details", "Fraction", "Method", "Name", "Sha256", "StrictModel", "Text", "current_method"]

_DEEPEST = 8

Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0, le=2**53)]  # every program that reads JSON has these numbers
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Name = Annotated[
    str, Field(min_length=1, max_length=LONGEST_NAME)
]  # of a class, a tensor, a version: it stands in headers and legends
Text = Annotated[str, Field(max_length=4096)]  # as long as a path may be


def current_method(name: Any) -> Any:
    """Return the name that a training method has today: `clean`, of older files, is `undefended`."""
    return "undefended" if name == "clean" else name


Method = Annotated[Name, AfterValidator(current_method)]


def _check_details(value: Any, depth: int = 0) -> Any:
    if depth > _DEEPEST:
        raise ValueError(f"it is nested more than {_DEEPEST} deep")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} is not a finite number")
    if isinstance(value, int) and abs(value) > 2**53:
        raise ValueError("an integer is beyond 2**53")
    if isinstance(value, str) and len(value) > 4096:
        raise ValueError(f"a text has {len(value)} characters, expected 4096 at most")
    if isinstance(value, dict):
        for key, inner in value.items():
            _check_details(key, depth + 1)
            _check_details(inner, depth + 1)
    elif isinstance(value, list | tuple):
        for inner in value:
            _check_details(inner, depth + 1)
    return value


Details = Annotated[dict[str, Any], AfterValidator(_check_details)]  # options of others: any JSON of finite numbers


class StrictModel(BaseModel):
    """A strict part of a file: unknown keys, other types and non-finite numbers are refused, and nothing changes later."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
