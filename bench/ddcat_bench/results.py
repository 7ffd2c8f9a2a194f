"""
The result files: strict, and complete enough that every table, plot and page is made from them alone.

A figure that has no value (the IoU of a class that is neither labelled nor predicted) is null: NaN is not JSON.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, Field, ValidationError

from ddcat.files import read_json
from ddcat_bench.entries import BundleEntry, CheckpointEntry, DataEntry, Environment, Scores
from ddcat_bench.errors import BenchError
from ddcat_bench.findings import Alarm, Probe
from ddcat_bench.schema import Fraction, Strict
from ddcat_bench.timing_results import (
    Ratio,
    SpeedEntry,
    SpeedRatio,
    SpeedResult,
    StepEntry,
    StepRatio,
    Times,
    Timing,
    TrainStepResult,
)

__all__ = [
    "AttackName",
    "AttackResult",
    "AttackRow",
    "BundleEntry",
    "CheckpointEntry",
    "Claim",
    "DataEntry",
    "Environment",
    "FidelityResult",
    "FidelityRow",
    "ProtocolName",
    "Ratio",
    "Scores",
    "SpeedEntry",
    "SpeedRatio",
    "SpeedResult",
    "StepEntry",
    "StepRatio",
    "SuiteName",
    "Times",
    "Timing",
    "TrainStepResult",
    "WorstCase",
    "grey",
    "read_result",
    "to_json",
]

AttackName = Literal[
    "clean", "BIM", "PGD", "SegPGD", "CosPGD", "TsallisPGD", "SEA-JS", "SEA-MCE", "SEA-MCE-Bal", "Square", "DLA", "noise",
    "transfer",
]  # fmt: skip
SuiteName = Literal["quick", "paper", "sea", "full"]
ProtocolName = Literal["whole", "windows"]


class AttackRow(Strict):
    """One attack and what it left."""

    name: AttackName
    epsilon: float = Field(description="L-infinity bound in [0, 1] units; 0 for clean images")
    alpha: float = Field(description="size of a step in [0, 1] units; 0 where the attack has no fixed one")
    steps: int = Field(description="of gradients; of queries for Square and DLA")
    start: Literal["clean", "random", "lower"]
    eight_bit: bool = Field(description="whether the perturbation was rounded toward zero to whole grey levels")
    grey_levels: float = Field(description="the bound that held, in grey levels of 255")
    scores: Scores
    substitute: CheckpointEntry | None = Field(default=None, description="of a transfer: what BIM was made on")

    @property
    def pixel_accuracy(self) -> float:
        """Share of the counted pixels that are right."""
        return self.scores.pixel_accuracy

    @property
    def label(self) -> str:
        """What heads its column: clean, n = 3, PGD-20 at 8/255, transfer n = 3 from sat 1a2b3c4d."""
        if self.name == "clean":
            return "clean"
        if self.substitute is not None:
            return f"transfer n = {self.steps} from {self.substitute.method} {self.substitute.sha256[:8]}"
        return f"n = {self.steps}" if self.name == "BIM" else f"{self.name}-{self.steps} at {grey(self.epsilon)}"


class WorstCase(Strict):
    """The worst of several attacks of one bound, chosen for each image."""

    name: Literal["SEA", "all"] = Field(description="SEA: its three losses; all: every attack of the bound that was made")
    epsilon: float
    eight_bit: bool
    members: tuple[str, ...] = Field(description="labels of the rows that it is chosen from")
    chosen: tuple[int, ...] = Field(description="of each image, the member that leaves the lowest data-set mIoU: greedy")
    chosen_for_accuracy: tuple[int, ...] = Field(description="of each image, the member of lowest pixel accuracy")
    scores: Scores = Field(description="under `chosen`")
    pixel_accuracy: Fraction = Field(description="under `chosen_for_accuracy`")

    @property
    def label(self) -> str:
        """What heads it: SEA at 4/255."""
        return f"{'SEA' if self.name == 'SEA' else 'worst of all'} at {grey(self.epsilon)}"


class Claim(Strict):
    """Something that the paper says, and whether it holds here."""

    claim: str
    evidence: str
    held: bool


class AttackResult(Strict):
    """What `ddcat-bench attack` found."""

    schema_version: Literal[1] = 1
    kind: Literal["attack"] = "attack"
    checkpoint: CheckpointEntry
    data: DataEntry
    protocol: str
    protocol_name: ProtocolName = "whole"
    policy: str = Field(default="", description="what is done with void and with background")
    background: str | None = Field(default=None, description="the class that foreground mIoU leaves out; null: there is none")
    suite: SuiteName
    seed: int = 0
    batch_size: int | None = Field(default=None, description="most images at once; null: an older file does not say")
    class_pixels: str | None = Field(default=None, description="what SEA-MCE-Bal balances the classes by")
    claims: tuple[Claim, ...] = ()
    worst_cases: tuple[WorstCase, ...] = ()
    rows: tuple[AttackRow, ...]
    probe: Probe | None = Field(default=None, description="null in files of before there was one")
    alarms: tuple[Alarm, ...] = ()
    environment: Environment

    def find(self, label: str, *, eight_bit: bool = False) -> AttackRow | None:
        """Give the row of a column, if there is one; clean images have 8 bits, so that either table has them."""
        return next((r for r in self.rows if r.label == label and (r.eight_bit == eight_bit or r.name == "clean")), None)


class FidelityRow(Strict):
    """The engine and the PyTorch model on the same 8-bit images."""

    name: AttackName
    epsilon: float
    alpha: float
    steps: int
    grey_levels: float
    pixels: int = Field(ge=1)
    differing: int = Field(description="pixels with two different labels")
    agreement: Fraction = Field(description="share of all pixels with the same label")
    counted_pixels: int = Field(ge=1, description="that are not ignored")
    counted_differing: int
    counted_agreement: Fraction
    image_differing: tuple[int, ...] = Field(description="pixels with two different labels, of each image")
    engine: Scores
    pytorch: Scores

    @property
    def label(self) -> str:
        """What heads its row: clean, n = 3."""
        return "clean" if self.name == "clean" else f"n = {self.steps}"


class FidelityResult(Strict):
    """What `ddcat-bench fidelity` found."""

    schema_version: Literal[1] = 1
    kind: Literal["fidelity"] = "fidelity"
    bundle: BundleEntry
    checkpoint: CheckpointEntry
    data: DataEntry
    protocol: str
    rows: tuple[FidelityRow, ...]
    environment: Environment


Result = TypeVar("Result", bound=BaseModel)


def grey(epsilon: float) -> str:
    """Write a bound in grey levels: 4/255."""
    return f"{255 * epsilon:.4g}/255"


def to_json(result: BaseModel) -> str:
    """Write as JSON that a person can read: whatever holds numbers alone takes one line for each of its parts."""
    return _pretty(result.model_dump(mode="json"), "") + "\n"


def read_result(path: Path, kind: type[Result]) -> Result:
    """
    Read a result file.

    Raises
    ------
    BenchError
        Where it cannot be read, or is a result of another kind or version: naming the first entry that does not fit.
    """
    content = json.dumps(read_json(path, BenchError))  # strict types are those of JSON, where a tuple is a list
    try:
        return kind.model_validate_json(content)
    except ValidationError as cause:
        first = cause.errors()[0]
        entry = ".".join(str(part) for part in first["loc"])
        raise BenchError(f"{path} is no {kind.__name__} that this version of ddcat reads: {entry}: {first['msg']}") from cause


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
