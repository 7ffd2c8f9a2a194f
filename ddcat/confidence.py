"""What a bundle says of its confidence, the probability of each pixel's label."""

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from ddcat.classes import IGNORE_INDEX
from ddcat.schema import Count, Fraction, StrictModel

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = ["CONFIDENCE_OUTPUT", "NO_THRESHOLD", "Abstention", "Temperature", "abstained"]

CONFIDENCE_OUTPUT = "confidence"
NO_THRESHOLD = "there is no threshold to abstain by: export it with --confidence and --risk"

_Positive = Annotated[Count, Field(ge=1)]


class Temperature(StrictModel):
    """A constant of the graph: the logits are divided by it before the softmax of the confidence. No label depends on it."""

    value: float = Field(gt=0)
    images: _Positive | None = Field(
        description="Images of the validation split whose likelihood it maximises; None: it was given."
    )


class Abstention(StrictModel):
    """
    A threshold of the confidence below which the engine abstains, if asked, and what is promised of the other pixels.

    Chosen by conformal risk control on the validation split: of one more image (or clip, or block of frames) like those, the
    share of the labelled pixels that are answered and wrong is at most `risk`, on average. See `ddcat_export.abstention`.
    """

    threshold: Fraction = Field(description="A pixel is answered where its confidence is above it.")
    risk: float = Field(gt=0, lt=1, description="What is promised, as a share of the labelled pixels.")
    kind: Literal["images", "clips", "blocks"] = Field(
        description="What stands for itself: images; or frames of video by clip, or in blocks of ten that follow each other."
    )
    units: _Positive = Field(description="Those of the validation split that have labels.")
    images: _Positive = Field(description="Images of the split.")
    found: Fraction = Field(description="The share on the split itself, its mean over the units.")
    error: Fraction = Field(description="Wrong pixels of those that are answered, on the split.")
    abstained: Fraction = Field(description="Labelled pixels that are not answered, on the split.")


def abstained(
    labels: "npt.NDArray[np.uint8]", confidence: "npt.NDArray[np.float32] | None", threshold: float | None
) -> "npt.NDArray[np.uint8]":
    """
    Return a copy of labels with 255 where the confidence, of the same shape, is not above a threshold.

    Without a threshold the labels are returned as they are. An engine whose bundle has one outputs the confidence.
    """
    if threshold is None:
        return labels
    assert confidence is not None
    answer = labels.copy()
    answer[~(confidence > threshold)] = IGNORE_INDEX  # NaN, too
    return answer
