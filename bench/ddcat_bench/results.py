"""
The result files: strict, and complete enough that every table, plot and page is made from them alone.

A figure that has no value (the IoU of a class that is neither labelled nor predicted) is null: NaN is not JSON.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import numpy as np
from pydantic import BaseModel, Field, ValidationError

from ddcat.files import read_json
from ddcat.scores import Counts, iou, miou, pixel_accuracy
from ddcat_bench.errors import BenchError
from ddcat_bench.findings import Alarm, Probe
from ddcat_bench.schema import Fraction, Strict

__all__ = [
    "AttackName",
    "AttackResult",
    "AttackRow",
    "BundleEntry",
    "CheckpointEntry",
    "DataEntry",
    "Environment",
    "FidelityResult",
    "FidelityRow",
    "Scores",
    "SpeedResult",
    "StepEntry",
    "StepRatio",
    "SuiteName",
    "Times",
    "Timing",
    "TrainStepResult",
    "read_result",
    "to_json",
]

AttackName = Literal["clean", "BIM", "PGD"]
SuiteName = Literal["quick", "paper"]
_QUIET = 0.5  # load average that is nobody's


class Environment(Strict):
    """Where and with what something was measured."""

    machine: dict[str, str | int]
    versions: dict[str, str]
    git_commit: str | None = Field(description="of ddcat; ends in '+changes' for an unclean tree")
    device: str = Field(description="that PyTorch computed on: cpu, or the name of a GPU")
    threads: int = Field(ge=1, description="of PyTorch on the CPU")
    seconds: float = Field(ge=0, description="that the whole measurement took")


class CheckpointEntry(Strict):
    """The checkpoint that was judged, or that a bundle was made from."""

    path: str
    sha256: str
    step: int | None = Field(description="updates that it was trained for; null: imported, and not known")
    method: str
    architecture: str
    attack: dict[str, Any] | None = Field(description="of its training; null where there was none")
    seed: int | None = Field(None, description="of its training; null: imported, or judged before it was recorded")
    training: dict[str, Any] | None = Field(
        None, description="the configuration but for what changes no weight and the seed; null as for the seed"
    )


class BundleEntry(Strict):
    """The bundle that was judged."""

    path: str
    name: str
    sha256: str = Field(description="of its manifest")
    engine: dict[str, str | int | bool] = Field(description="as the engine describes itself")


class DataEntry(Strict):
    """The images that were judged."""

    name: str
    split: str
    list_sha256: str = Field(description="of the names of all images of the split, one a line")
    split_images: int = Field(ge=1, description="in the split")
    long_side: int | None = Field(description="images were resized to it first; null: they were not")
    usual_split: bool = Field(description="whether it is the validation split that the checkpoint or bundle names")
    classes: tuple[str, ...]
    names: tuple[str, ...] = Field(description="of the judged images, in the order of all counts")


class Scores(Strict):
    """Figures over all judged images, and the counts of each image that they are computed from."""

    miou: Fraction = Field(description="counts summed over the images first; classes without a pixel left out")
    pixel_accuracy: Fraction
    mean_image_miou: Fraction = Field(description="mean over the images of each image's own mIoU")
    class_iou: tuple[Fraction | None, ...]
    counts: tuple[tuple[tuple[int, int, int], ...], ...] = Field(
        description="(images, classes, 3): true positives, false positives, false negatives"
    )

    @classmethod
    def of(cls, counts: Counts) -> Self:
        """
        Compute all figures.

        Parameters
        ----------
        counts : (I, K, 3) int64
            As `ddcat.scores.count`.

        Raises
        ------
        BenchError
            Where no pixel was counted at all.
        """
        total = counts.sum(0)
        if not total.any():
            raise BenchError("every pixel of the judged images is ignored: there is nothing to score")
        images = [value for image in counts if not np.isnan(value := miou(image))]
        return cls(
            miou=miou(total),
            pixel_accuracy=pixel_accuracy(total),
            mean_image_miou=float(np.mean(images)),
            class_iou=tuple(None if np.isnan(value) else float(value) for value in iou(total)),
            counts=tuple(tuple((tp, fp, fn) for tp, fp, fn in image) for image in counts.tolist()),
        )

    def array(self) -> Counts:
        """Give the counts as (I, K, 3) int64."""
        return np.array(self.counts, dtype=np.int64)


class AttackRow(Strict):
    """One attack and what it left."""

    name: AttackName
    epsilon: float = Field(description="L-infinity bound in [0, 1] units; 0 for clean images")
    alpha: float = Field(description="size of a step in [0, 1] units")
    steps: int
    start: Literal["clean", "random", "lower"]
    eight_bit: bool = Field(description="whether the perturbation was rounded toward zero to whole grey levels")
    grey_levels: float = Field(description="the bound that held, in grey levels of 255")
    scores: Scores

    @property
    def label(self) -> str:
        """What heads its column: clean, n = 3, PGD-20."""
        return {"clean": "clean", "BIM": f"n = {self.steps}", "PGD": f"PGD-{self.steps}"}[self.name]


class AttackResult(Strict):
    """What `ddcat-bench attack` found."""

    schema_version: Literal[1] = 1
    kind: Literal["attack"] = "attack"
    checkpoint: CheckpointEntry
    data: DataEntry
    protocol: str
    suite: SuiteName
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


class Times(Strict):
    """One contender's times."""

    seconds: tuple[float, ...] = Field(description="of each call, in their order")
    median: float
    lower_quartile: float
    upper_quartile: float


class Timing(Times):
    """The times of so many calls that one can tell whether they drift."""

    stable: bool = Field(description="whether the medians of the last three windows lie within 10 %")


class SpeedResult(Strict):
    """What `ddcat-bench speed` found."""

    schema_version: Literal[1] = 1
    kind: Literal["speed"] = "speed"
    bundle: BundleEntry
    checkpoint: CheckpointEntry
    boundary: str
    inputs: str = Field(description="what the images were")
    batch: int = Field(ge=1)
    height: int
    width: int
    threads: int = Field(ge=1, description="of either contender")
    warm_up: int = Field(description="calls of each contender before the first that counts")
    engine: Timing
    pytorch: Timing
    ratio_of_medians: float = Field(description="engine / PyTorch: below 1 the engine is faster")
    median_of_ratios: float = Field(description="median over the pairs of engine / PyTorch")
    environment: Environment


class StepEntry(Strict):
    """One contender's training steps."""

    name: Literal["ours", "released", "frugal"]
    precision: Literal["fp32", "bf16", "fp64"]
    times: Times
    images_per_second: float = Field(description="of the median step")
    operations: int = Field(description="of convolutions and matrix products in a step; an addition is one, too")
    peak_share: float = Field(description="operations a second, as a share of those of the measured matrix product")
    peak_memory: int | None = Field(description="bytes, of a process of its own; null: the system does not tell")


class StepRatio(Strict):
    """Seconds of a baseline / ours, in the same turn: how many times as fast our step is."""

    baseline: Literal["released", "frugal"]
    median: float = Field(description="of the ratios of all turns")
    lower_quartile: float
    upper_quartile: float
    lowest: float
    highest: float
    of_medians: float = Field(description="ratio of the medians")


class TrainStepResult(Strict):
    """What `ddcat-bench train-step` found."""

    schema_version: Literal[1] = 1
    kind: Literal["train-step"] = "train-step"
    preset: str
    method: str
    architecture: str
    config: dict[str, Any] = Field(description="of our step, in full")
    classes: int
    batch: int = Field(ge=1)
    height: int
    width: int
    tf32: bool = Field(description="whether float32 products may be rounded to TF32 on a GPU, for all contenders")
    warm_up: int = Field(description="steps of each contender before the first that counts")
    boundary: str
    memory: str = Field(description="what peak memory is")
    contenders: tuple[StepEntry, ...]
    ratios: tuple[StepRatio, ...]
    matrix_product_peak: dict[str, float] = Field(description="operations a second in each precision, as measured here")
    load_before: float = Field(description="load average of the last minute when the measurement began")
    load_after: float = Field(description="and when its last timed step ended; above the threads by what others did")
    environment: Environment

    @property
    def disturbed(self) -> bool:
        """Whether others seem to have computed on the machine meanwhile."""
        return self.load_before > _QUIET or self.load_after > self.environment.threads + _QUIET


Result = TypeVar("Result", AttackResult, FidelityResult, SpeedResult, TrainStepResult)


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
