"""The result file of `train_step.py`."""

from typing import Any, Literal

from pydantic import Field

from ddcat.schema import StrictModel
from ddcat_bench.timing.results import Ratio, Times, Watched

__all__ = ["StepEntry", "StepRatio", "TrainStepResult"]


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
    """Speed-up of our step over a baseline."""

    baseline: Literal["released", "frugal"]


class TrainStepResult(Watched):
    """What `bench/paper/train_step.py` measured."""

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
