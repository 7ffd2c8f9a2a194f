"""The result file of the gate."""

from typing import Literal

from pydantic import Field

from ddcat.passport import Finding, Verdict
from ddcat.schema import Fraction, StrictModel
from ddcat.tiles import Tiles
from ddcat_bench.attack.results import Alarm, Probe
from ddcat_bench.gate.thresholds import Thresholds
from ddcat_bench.perturbation.results import PerturbationRow
from ddcat_bench.result_schema import BundleEntry, CheckpointEntry, DataEntry, Environment
from ddcat_bench.timing.results import SpeedResult, ThroughputResult

__all__ = [
    "BAND",
    "MARGINS",
    "Calibration",
    "CalibrationBin",
    "CalibrationRow",
    "ClassEntry",
    "GateResult",
    "MarginRow",
    "MemberRow",
    "ThreatRow",
]

Bounds = tuple[float, float]

BAND = 3  # pixels to either side of a true boundary
MARGINS = (0.0, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)  # lower ends of the classes of margins, in logits; the last has no upper end
_RARE = 0.01


class MarginRow(StrictModel):
    """Pixels by how sure the PyTorch model was of its label."""

    lowest: float = Field(description="Logits by which the best class was ahead of the second, at least.")
    pixels: int
    differing: int = Field(description="Those of the pixels that the engine and the PyTorch model label differently.")


class ClassEntry(StrictModel):
    """A class and its share of the pixels."""

    name: str
    share: Fraction = Field(description="Share of the pixels that count.")

    @property
    def rare(self) -> bool:
        """True if fewer than one pixel in a hundred has it."""
        return self.share < _RARE


class MemberRow(StrictModel):
    """One attack of the pool and what it left of both models."""

    source: Literal["replay", "twin", "engine", "noise", "corrupted", "codec"]
    label: str
    epsilon: float
    images: int = Field(description="Images that it was made on; the others count as the replay at its bound leaves them.")
    reference: float = Field(description="Points of mIoU of the PyTorch model over all images.")
    engine: float
    agreement: Fraction = Field(description="Share of the pixels that the engine and the PyTorch model label alike.")
    twin_agreement: Fraction = Field(description="Share of the pixels that the engine and its twin label alike.")
    band_agreement: Fraction | None = Field(
        description=f"The same within {BAND} pixels of a true boundary; null: there is none."
    )
    interior_agreement: Fraction | None = Field(description="The same elsewhere.")
    margins: tuple[MarginRow, ...]


class ThreatRow(StrictModel):
    """One threat, under which both models meet the worst of its attacks for them."""

    name: str
    epsilon: float
    members: tuple[str, ...]
    reference: float = Field(description="Points of mIoU of the PyTorch model.")
    engine: float
    difference: float = Field(description="Engine minus PyTorch model.")
    interval: Bounds = Field(description="Interval of 90 % of the draws of a paired bootstrap.")
    by_block: dict[str, Bounds] = Field(description="The same interval with blocks of so many frames.")
    class_iou: tuple[tuple[float | None, float | None], ...] = Field(
        description="Points of the PyTorch model and of the engine, in the order of the classes; null: it is in no image."
    )
    margin: float
    verdict: Verdict | None = Field(
        description="Null: the PyTorch model keeps less than 10 points, so nothing is left to preserve."
    )
    reason: str


class CalibrationBin(StrictModel):
    """Pixels whose confidence lies in one of fifteen bins of one width."""

    share: Fraction = Field(description="Share of the pixels that count.")
    confidence: Fraction = Field(description="Its mean.")
    accuracy: Fraction = Field(description="Share of those pixels that are right.")


class CalibrationRow(StrictModel):
    """How far the confidence of a model is from how often it is right."""

    error: Fraction = Field(
        description="Expected calibration error: distance of confidence and accuracy, mean over the pixels."
    )
    bins: tuple[CalibrationBin, ...] = Field(description="Those of the fifteen that are not empty.")


class Calibration(StrictModel):
    """Calibration on clean images, at the temperature of the engine's graph."""

    reference: CalibrationRow
    engine: CalibrationRow | None = Field(description="Of its own confidence; null: it gives none.")


class GateResult(StrictModel):
    """The result of `ddcat gate`."""

    schema_version: Literal[1] = 1
    kind: Literal["gate"] = "gate"
    bundle: BundleEntry
    checkpoint: CheckpointEntry
    data: DataEntry
    precision: str
    budget: Literal["default", "quick"]
    protocol: str
    drawn: str = Field(description="What the bootstrap draws.")
    verdict: Verdict
    findings: tuple[Finding, ...]
    warnings: tuple[str, ...] = Field((), description="What a reader of the verdict must know; it decides nothing.")
    limits: Thresholds
    threats: tuple[ThreatRow, ...]
    members: tuple[MemberRow, ...]
    perturbations: tuple[PerturbationRow, ...] = Field(
        (), description="L2, universal, patch and minimal norm, with their controls: they inform and decide nothing."
    )
    calibration: Calibration | None = Field(None, description="Null: of an older gate.")
    tiles: Tiles | None = Field(None, description="The rule by which the engine cut images; null: none was larger than a tile.")
    classes: tuple[ClassEntry, ...]
    transferred: bool = Field(
        description="True where the twin is another model (engine and twin label fewer than 99.9 % of the pixels alike, on "
        "clean or on attacked images), so that attacks on it are transferred ones."
    )
    alarms: tuple[Alarm, ...]
    probe: Probe | None = Field(description="Probe of the twin; null: with the quick budget.")
    speed: SpeedResult
    cost: ThroughputResult | None = Field(None, description="Throughput; null: with the quick budget.")
    environment: Environment
