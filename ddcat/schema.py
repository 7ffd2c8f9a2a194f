"""What the files that ddcat writes and reads back are described with."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["Fraction", "Sha256", "Strict"]

Fraction = Annotated[float, Field(ge=0, le=1)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Strict(BaseModel):
    """A part of a file: no unknown key, no type but the declared one, no change once made."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
