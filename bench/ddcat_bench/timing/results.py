"""The result files of what is timed."""

from typing import Literal

from pydantic import Field

from ddcat.schema import StrictModel
from ddcat_bench.result_schema import BundleEntry, CheckpointEntry, Environment

__all__ = [
    "Precision",
    "Ratio",
    "SpeedEntry",
    "SpeedRatio",
    "SpeedResult",
    "ThroughputResult",
    "ThroughputRow",
    "Times",
    "Timing",
    "Watched",
]

Precision = Literal["fp32", "bf16", "fp64"]  # that PyTorch computes in

_QUIET = 0.5  # load average that is nobody's
_IDLE = 0.1  # cores that a system keeps busy by itself


class Times(StrictModel):
    """One contender's times."""

    seconds: tuple[float, ...] = Field(description="Seconds of each call, in their order.")
    median: float
    lower_quartile: float
    upper_quartile: float


class Timing(Times):
    """The times of so many calls that one can tell whether they drift."""

    stable: bool = Field(description="True where the medians of the last three windows lie within 10 %.")


class Ratio(StrictModel):
    """Seconds of a baseline / those of what is measured, in the same turn: how many times as fast that is."""

    median: float = Field(description="Median of the ratios of all turns.")
    lower_quartile: float
    upper_quartile: float
    lowest: float
    highest: float
    of_medians: float = Field(description="Ratio of the medians.")


class SpeedEntry(StrictModel):
    """One contender that labels images."""

    name: Literal["engine", "original", "main branch", "compiled"]
    times: Timing
    peak_memory: int | None = Field(description="Bytes of a process of its own; null: the system does not tell.")


class SpeedRatio(Ratio):
    """Speed-up of the engine over a PyTorch baseline."""

    baseline: Literal["original", "main branch", "compiled"]


class Watched(StrictModel):
    """A measurement that records how busy its machine was."""

    schema_version: int
    kind: str
    load_before: float = Field(description="Load average of the last minute when the measurement began.")
    load_after: float = Field(description="The same when its last timed call ended; above the threads by what others did.")
    others: float | None = Field(None, description="Cores that others kept busy while it was timed; null: not known.")
    environment: Environment

    @property
    def disturbed(self) -> bool:
        """True if other processes seem to have computed on the machine meanwhile."""
        if self.others is not None:
            return self.others > _IDLE
        return self.load_before > _QUIET or self.load_after > self.environment.threads + _QUIET


class SpeedResult(Watched):
    """The result of `ddcat speed`."""

    schema_version: Literal[2] = 2
    kind: Literal["speed"] = "speed"
    bundle: BundleEntry
    checkpoint: CheckpointEntry
    engine_bytes: int = Field(description="Size of the file that the runtime loads.")
    parameter_bytes: int = Field(description="Size of the main branch's parameters and statistics in fp32.")
    boundary: str
    memory: str = Field(description="What peak memory is.")
    inputs: str = Field(description="What the images were.")
    batch: int = Field(ge=1)
    height: int
    width: int
    threads: int = Field(ge=1, description="Threads of each contender.")
    warm_up: int = Field(description="Calls of each contender before the first that counts.")
    contenders: tuple[SpeedEntry, ...]
    ratios: tuple[SpeedRatio, ...] = Field(description="Ratios to each baseline, the original graph first.")

    @property
    def stable(self) -> bool:
        """True if no contender's times drifted."""
        return all(entry.times.stable for entry in self.contenders)

    def find(self, name: str) -> SpeedEntry:
        """Return a contender by its name."""
        return next(entry for entry in self.contenders if entry.name == name)


class ThroughputRow(StrictModel):
    """A batch of images of one size."""

    batch: int
    height: int
    width: int
    times: Timing
    images_per_second: float = Field(description="Images a second in the median call.")
    of_peak: float | None = Field(
        description="Multiply-adds a second, two operations each, as a share of fp32 matrix products measured just before; the "
        "work of another size than the manifest's is taken in proportion to its pixels; null: not of a CPU in fp32."
    )


class ThroughputResult(StrictModel):
    """Throughput of an engine alone."""

    threads: int | None = Field(description="Threads of the engine; null: it does not say.")
    matrix_product_peak: float | None = Field(description="Operations a second in fp32; null: the engine computes elsewhere.")
    batches: tuple[ThroughputRow, ...] = Field(description="Rows by batch, of images of one size.")
    sizes: tuple[ThroughputRow, ...] = Field(
        description="Rows by size, in the smallest batch; one row where the engine takes one size."
    )
    others: float | None = Field(description="Cores that others kept busy meanwhile; null: not known.")
