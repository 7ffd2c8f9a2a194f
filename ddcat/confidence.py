"""What a bundle says of its confidence, the probability of each pixel's label."""

from typing import Annotated

from pydantic import Field

from ddcat.schema import Count, StrictModel

__all__ = ["CONFIDENCE_OUTPUT", "Temperature"]

CONFIDENCE_OUTPUT = "confidence"


class Temperature(StrictModel):
    """A constant of the graph: the logits are divided by it before the softmax of the confidence. No label depends on it."""

    value: float = Field(gt=0)
    images: Annotated[Count, Field(ge=1)] | None = Field(
        description="Images of the validation split whose likelihood it maximises; None: it was given."
    )
