"""The result file of the suite `corruptions`."""

from typing import Literal

import numpy as np
from pydantic import Field

from ddcat.schema import Fraction, StrictModel
from ddcat_bench.result_schema import BundleEntry, CheckpointEntry, DataEntry, Environment, Scores
from ddcat_train.corruptions import CAPTURE, COMMON, EXTRA

__all__ = ["CorruptionResult", "CorruptionRow", "Group"]

Group = Literal["common", "extra", "capture"]
_WHOLE: dict[Group, int] = {"common": len(COMMON), "extra": len(EXTRA), "capture": len(CAPTURE)}


class CorruptionRow(StrictModel):
    """Scores under one corruption at one severity."""

    name: str
    group: Group = Field(description="The list that it is of: the fifteen common ones, the four extra ones, or capture.")
    severity: int = Field(ge=1, le=5)
    miou: Fraction = Field(description="Counts are summed over the images first.")
    low: Fraction | None = Field(description="Lower end of the 95 % bootstrap interval; null: too few images.")
    high: Fraction | None = Field(description="Upper end of it.")
    pixel_accuracy: Fraction
    class_iou: tuple[Fraction | None, ...]


class CorruptionResult(StrictModel):
    """The result of the suite `corruptions`."""

    schema_version: Literal[1] = 1
    kind: Literal["corruptions"] = "corruptions"
    checkpoint: CheckpointEntry | None = Field(description="The model that was judged; null: an engine was.")
    bundle: BundleEntry | None = Field(description="The engine that was judged; null: a model was.")
    data: DataEntry
    seed: int
    clean: Scores
    rows: tuple[CorruptionRow, ...]
    environment: Environment

    @property
    def title(self) -> str:
        """Name of what was judged."""
        if self.checkpoint is not None:
            return f"{self.checkpoint.method} ({self.checkpoint.architecture})"
        assert self.bundle is not None
        return f"{self.bundle.name} ({self.bundle.engine.get('engine', 'engine')})"

    def names(self, group: Group) -> tuple[str, ...]:
        """List the corruptions of a group."""
        return tuple(dict.fromkeys(row.name for row in self.rows if row.group == group))

    def part(self, group: Group) -> str:
        """Return how many of a group's corruptions were measured, such as " (1 of 15)"; empty where all were."""
        measured, whole = len(self.names(group)), _WHOLE[group]
        return "" if measured == whole else f" ({measured} of {whole})"

    def of(self, name: str) -> tuple[CorruptionRow, ...]:
        """Return the rows of a corruption, by severity."""
        return tuple(sorted((row for row in self.rows if row.name == name), key=lambda row: row.severity))

    def mean(self, group: Group, severity: int | None = None) -> float | None:
        """Average the mIoU over a group's corruptions, and over all severities or one; None where none was made."""
        found = [row.miou for row in self.rows if row.group == group and severity in (None, row.severity)]
        return float(np.mean(found)) if found else None
