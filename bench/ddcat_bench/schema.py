"""What all parts of a result file are built on."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["Fraction", "Strict"]

Fraction = Annotated[float, Field(ge=0, le=1)]


class Strict(BaseModel):
    """A part of a result file: no unknown key, no type but the declared one, no change once made."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
