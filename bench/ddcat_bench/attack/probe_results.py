"""What the probe for masked gradients measured, and the alarms that it and the suites raised."""

from typing import Literal

from pydantic import Field

from ddcat.schema import Fraction, StrictModel

__all__ = ["Alarm", "AlarmName", "GradientShares", "PointName", "Probe", "ProbePoint"]

AlarmName = Literal[
    "black-box beats white-box",
    "more steps weaken the attack",
    "accuracy is left at epsilon 64/255",
    "gradients are zero or not finite",
    "the trained n is easier than its neighbours",
    "attacked mIoU is above clean",
]
PointName = Literal["clean", "noise", "Square", "DLA", "PGD", "CosPGD"]


class Alarm(StrictModel):
    """A sign that an attack was too weak for its figure to be believed."""

    name: AlarmName
    evidence: str = Field(description="what was seen, with its numbers")
    meaning: str = Field(description="what it says of the figures, and what to do")


class ProbePoint(StrictModel):
    """What one small attack left of the probe's images."""

    name: PointName
    epsilon: float = Field(description="L-infinity bound in [0, 1] units; 0 for clean images")
    steps: int = Field(description="of gradients, or queries of each image; 0 for clean images")
    miou: Fraction
    pixel_accuracy: Fraction

    @property
    def label(self) -> str:
        """How a sentence names it: clean, PGD-20, Square with 100 queries."""
        if self.name == "clean":
            return "clean"
        return f"{self.name}-{self.steps}" if self.name in ("PGD", "CosPGD") else f"{self.name} with {self.steps} queries"


class GradientShares(StrictModel):
    """How much of the cross-entropy's gradient on the clean images is missing."""

    zero_images: Fraction = Field(description="of the images: the gradient is exactly 0 at every input")
    non_finite_images: Fraction = Field(description="of the images: the gradient is infinite or NaN somewhere")
    zero_pixels: Fraction = Field(
        description="of the pixels that are not ignored: the gradient of their own loss with respect to their own logits is "
        "exactly 0, as it is in float32 where the right logit leads by more than about 100"
    )


class Probe(StrictModel):
    """Small attacks on a few images, made to find masked gradients and not to be quoted."""

    images: int = Field(ge=1, description="spread evenly over the split")
    seed: int
    points: tuple[ProbePoint, ...]
    gradients: GradientShares
    seconds: float = Field(ge=0)

    def find(self, name: str) -> tuple[ProbePoint, ...]:
        """Give the points of a name, in the order in which they were measured."""
        return tuple(point for point in self.points if point.name == name)
