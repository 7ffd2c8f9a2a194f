"""The result files of what is timed."""

from typing import Any, Literal

from pydantic import Field

from ddcat.schema import Fraction, StrictModel
from ddcat_bench.entries import BundleEntry, CheckpointEntry, DataEntry, Environment

__all__ = [
    "CostResult",
    "CostRow",
    "Precision",
    "Ratio",
    "SpeedEntry",
    "SpeedRatio",
    "SpeedResult",
    "StepEntry",
    "StepRatio",
    "SweepResult",
    "Times",
    "Timing",
    "TrainStepResult",
    "Watched",
]

Precision = Literal["fp32", "bf16", "fp64"]  # of training steps

_QUIET = 0.5  # load average that is nobody's
_IDLE = 0.1  # cores that a system keeps busy by itself


class Times(StrictModel):
    """One contender's times."""

    seconds: tuple[float, ...] = Field(description="of each call, in their order")
    median: float
    lower_quartile: float
    upper_quartile: float


class Timing(Times):
    """The times of so many calls that one can tell whether they drift."""

    stable: bool = Field(description="whether the medians of the last three windows lie within 10 %")


class Ratio(StrictModel):
    """Seconds of a baseline / those of what is measured, in the same turn: how many times as fast that is."""

    median: float = Field(description="of the ratios of all turns")
    lower_quartile: float
    upper_quartile: float
    lowest: float
    highest: float
    of_medians: float = Field(description="ratio of the medians")


class SpeedEntry(StrictModel):
    """One contender that labels images."""

    name: Literal["engine", "original", "main branch", "compiled"]
    times: Timing
    peak_memory: int | None = Field(description="bytes, of a process of its own; null: the system does not tell")


class SpeedRatio(Ratio):
    """How many times as fast the engine is."""

    baseline: Literal["original", "main branch", "compiled"]


class Watched(StrictModel):
    """What a measurement says of the machine that it ran on."""

    schema_version: int
    kind: str
    load_before: float = Field(description="load average of the last minute when the measurement began")
    load_after: float = Field(description="and when its last timed call ended; above the threads by what others did")
    others: float | None = Field(
        None, description="cores that others kept busy while it was timed; null: measured before that was, or not known"
    )
    environment: Environment

    @property
    def disturbed(self) -> bool:
        """Whether others seem to have computed on the machine meanwhile."""
        if self.others is not None:
            return self.others > _IDLE
        return self.load_before > _QUIET or self.load_after > self.environment.threads + _QUIET


class SpeedResult(Watched):
    """What `ddcat speed` found."""

    schema_version: Literal[2] = 2
    kind: Literal["speed"] = "speed"
    bundle: BundleEntry
    checkpoint: CheckpointEntry
    engine_bytes: int = Field(description="size of the file that the runtime loads")
    parameter_bytes: int = Field(description="size of the main branch's parameters and statistics in fp32")
    boundary: str
    memory: str = Field(description="what peak memory is")
    inputs: str = Field(description="what the images were")
    batch: int = Field(ge=1)
    height: int
    width: int
    threads: int = Field(ge=1, description="of each contender")
    warm_up: int = Field(description="calls of each contender before the first that counts")
    contenders: tuple[SpeedEntry, ...]
    ratios: tuple[SpeedRatio, ...] = Field(description="beside the original graph, where there is a plain form of it, first")

    @property
    def stable(self) -> bool:
        """Whether no contender's times drifted."""
        return all(entry.times.stable for entry in self.contenders)

    def find(self, name: str) -> SpeedEntry:
        """Give a contender."""
        return next(entry for entry in self.contenders if entry.name == name)


class StepEntry(StrictModel):
    """One contender's training steps."""

    name: Literal["ours", "released", "frugal"]
    precision: Literal["fp32", "bf16", "fp64"]
    times: Times
    images_per_second: float = Field(description="of the median step")
    operations: int = Field(description="of convolutions and matrix products in a step; an addition is one, too")
    peak_share: float = Field(description="operations a second, as a share of those of the measured matrix product")
    peak_memory: int | None = Field(description="bytes, of a process of its own; null: the system does not tell")


class StepRatio(Ratio):
    """How many times as fast our step is."""

    baseline: Literal["released", "frugal"]


class TrainStepResult(Watched):
    """What `ddcat train-step` found."""

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


class SweepResult(Watched):
    """What `ddcat attack --measure` found."""

    schema_version: Literal[1] = 1
    kind: Literal["attack-measure"] = "attack-measure"
    checkpoint: CheckpointEntry
    data: DataEntry
    batch: int = Field(ge=1, description="images, attacked at once")
    height: int
    width: int
    boundary: str
    ours: Times
    plain: Times
    median: float = Field(description="of plain / ours in the same turn: how many times as fast ours is")
    lower_quartile: float
    upper_quartile: float
    lowest: float
    highest: float
    agreement: Fraction = Field(description="share of the pixels, over n = 0..7, with the same label in both")
    sea_steps: int = Field(description="of the SEA by which early stopping is judged, at 8/255")
    sea_seen: Fraction = Field(description="share of its forwards that were computed; the rest were of beaten images")


class CostRow(StrictModel):
    """A batch of images of one size."""

    batch: int
    height: int
    width: int
    times: Timing
    images_per_second: float = Field(description="of the median call")
    of_peak: float | None = Field(
        description="multiply-adds a second, two operations each, as a share of fp32 matrix products measured just before; the "
        "work of another size than the manifest's is taken in proportion to its pixels; null: not of a CPU in fp32"
    )


class CostResult(StrictModel):
    """What was measured of an engine alone."""

    threads: int | None = Field(description="of the engine; null: it does not say")
    matrix_product_peak: float | None = Field(description="operations a second in fp32; null: the engine computes elsewhere")
    batches: tuple[CostRow, ...] = Field(description="of one size")
    sizes: tuple[CostRow, ...] = Field(description="in the smallest batch; one row where the engine takes one size")
    others: float | None = Field(description="cores that others kept busy meanwhile; null: not known")
