"""The result file of `ddcat attack`."""

from typing import Literal

from pydantic import Field

from ddcat.schema import Fraction, StrictModel
from ddcat_bench.cli_options import ProtocolName, SuiteName
from ddcat_bench.perturbation.results import PerturbationRow
from ddcat_bench.result_schema import CheckpointEntry, DataEntry, Environment, Scores

__all__ = [
    "Alarm", "AlarmName", "AttackName", "AttackResult", "AttackRow", "Claim", "GradientShares", "PointName", "Probe",
    "ProbePoint", "WorstCase", "grey",
]  # fmt: skip

AttackName = Literal[
    "clean", "BIM", "PGD", "SegPGD", "CosPGD", "TsallisPGD", "SEA-JS", "SEA-MCE", "SEA-MCE-Bal", "Square", "DLA", "noise",
    "transfer",
]  # fmt: skip

AlarmName = Literal[
    "black-box beats white-box",
    "more steps weaken the attack",
    "accuracy is left at epsilon 64/255",
    "gradients are zero or not finite",
    "the trained n is easier than its neighbours",
    "attacked mIoU is above clean",
]
PointName = Literal["clean", "noise", "Square", "DLA", "PGD", "CosPGD"]


class AttackRow(StrictModel):
    """Scores under one attack."""

    name: AttackName
    epsilon: float = Field(description="L-infinity bound in [0, 1] units; 0 for clean images.")
    alpha: float = Field(description="Size of a step in [0, 1] units; 0 where the attack has no fixed one.")
    steps: int = Field(description="Gradients; for Square and DLA, queries.")
    start: Literal["clean", "random", "lower"]
    eight_bit: bool = Field(description="True where the perturbation was rounded toward zero to whole grey levels.")
    grey_levels: float = Field(description="Bound that held, in grey levels of 255.")
    scores: Scores
    substitute: CheckpointEntry | None = Field(default=None, description="Model that the BIM of a transfer was made on.")

    @property
    def pixel_accuracy(self) -> float:
        """Share of the counted pixels that are right."""
        return self.scores.pixel_accuracy

    @property
    def label(self) -> str:
        """Heading of its column: clean, n = 3, PGD-20 at 8/255, transfer n = 3 from sat 1a2b3c4d."""
        if self.name == "clean":
            return "clean"
        if self.substitute is not None:
            return f"transfer n = {self.steps} from {self.substitute.method} {self.substitute.sha256[:8]}"
        return f"n = {self.steps}" if self.name == "BIM" else f"{self.name}-{self.steps} at {grey(self.epsilon)}"


class WorstCase(StrictModel):
    """The worst of several attacks of one bound, chosen for each image."""

    name: Literal["SEA", "all"] = Field(description="SEA: its three losses; all: every attack of the bound that was made.")
    epsilon: float
    eight_bit: bool
    members: tuple[str, ...] = Field(description="Labels of the rows that it is chosen from.")
    chosen: tuple[int, ...] = Field(description="Of each image, the member that leaves the lowest data-set mIoU: greedy.")
    chosen_for_accuracy: tuple[int, ...] = Field(description="Of each image, the member of lowest pixel accuracy.")
    scores: Scores = Field(description="Scores under `chosen`.")
    pixel_accuracy: Fraction = Field(description="Pixel accuracy under `chosen_for_accuracy`.")

    @property
    def label(self) -> str:
        """Heading of its column: SEA at 4/255."""
        return f"{'SEA' if self.name == 'SEA' else 'worst of all'} at {grey(self.epsilon)}"


class Claim(StrictModel):
    """Something that the paper says, and whether it holds here."""

    claim: str
    evidence: str
    held: bool


class Alarm(StrictModel):
    """A sign that an attack was too weak for its figure to be believed."""

    name: AlarmName
    evidence: str = Field(description="What was seen, with its numbers.")
    meaning: str = Field(description="What it says of the figures, and what to do.")


class ProbePoint(StrictModel):
    """Scores of the probe's images under one small attack."""

    name: PointName
    epsilon: float = Field(description="L-infinity bound in [0, 1] units; 0 for clean images.")
    steps: int = Field(description="Gradients, or queries of each image; 0 for clean images.")
    miou: Fraction
    pixel_accuracy: Fraction

    @property
    def label(self) -> str:
        """Name in a sentence: clean, PGD-20, Square with 100 queries."""
        if self.name == "clean":
            return "clean"
        return f"{self.name}-{self.steps}" if self.name in ("PGD", "CosPGD") else f"{self.name} with {self.steps} queries"


class GradientShares(StrictModel):
    """Missing parts of the cross-entropy's gradient on the clean images."""

    zero_images: Fraction = Field(description="Share of the images whose gradient is exactly 0 at every input.")
    non_finite_images: Fraction = Field(description="Share of the images whose gradient is infinite or NaN somewhere.")
    zero_pixels: Fraction = Field(
        description="Share of the pixels that are not ignored for which the gradient of their own loss with respect to their "
        "own logits is exactly 0, as it is in float32 where the right logit leads by more than about 100."
    )


class Probe(StrictModel):
    """Small attacks on a few images, made to find masked gradients and not to be quoted."""

    images: int = Field(ge=1, description="Images, spread evenly over the split.")
    seed: int
    points: tuple[ProbePoint, ...]
    gradients: GradientShares
    seconds: float = Field(ge=0)

    def find(self, name: str) -> tuple[ProbePoint, ...]:
        """Return the points of a name, in the order of measurement."""
        return tuple(point for point in self.points if point.name == name)


class AttackResult(StrictModel):
    """The result of `ddcat attack`."""

    schema_version: Literal[1] = 1
    kind: Literal["attack"] = "attack"
    checkpoint: CheckpointEntry
    data: DataEntry
    protocol: str
    protocol_name: ProtocolName = "whole"
    policy: str = Field(default="", description="What is done with void and with background.")
    background: str | None = Field(default=None, description="Class that foreground mIoU leaves out; null: there is none.")
    suite: SuiteName
    seed: int = 0
    batch_size: int | None = Field(default=None, description="Most images at once; null: an older file does not say.")
    class_pixels: str | None = Field(default=None, description="What SEA-MCE-Bal balances the classes by.")
    claims: tuple[Claim, ...] = ()
    worst_cases: tuple[WorstCase, ...] = ()
    rows: tuple[AttackRow, ...]
    perturbations: tuple[PerturbationRow, ...] = Field(
        default=(), description="L2, universal, patch and minimal norm, with their controls; of the suite full alone."
    )
    probe: Probe | None = Field(default=None, description="Null in files from before there was one.")
    alarms: tuple[Alarm, ...] = ()
    environment: Environment

    def find(self, label: str, *, eight_bit: bool = False) -> AttackRow | None:
        """Return the row of a column, if there is one; clean images have 8 bits, so both tables have them."""
        return next((r for r in self.rows if r.label == label and (r.eight_bit == eight_bit or r.name == "clean")), None)


def grey(epsilon: float) -> str:
    """Write a bound in grey levels: 4/255."""
    return f"{255 * epsilon:.4g}/255"
