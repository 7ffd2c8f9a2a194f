"""The numbers that the paper prints."""

from functools import cache
from pathlib import Path
from typing import Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, model_validator

__all__ = ["PaperLine", "PaperNumbers", "PaperTable", "paper_numbers"]

_FILE = Path(__file__).with_name("paper_numbers.yaml")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PaperLine(_Strict):
    """One line of a table: mIoU of each column, and its standard deviation where the paper prints one."""

    architecture: str
    method: str
    mean: tuple[float, ...]
    sd: tuple[float, ...] | None = None


class PaperTable(_Strict):
    """One of the paper's tables."""

    number: int
    data: str
    kind: Literal["white-box", "black-box", "ablation", "clean"]
    columns: tuple[str, ...]
    lines: tuple[PaperLine, ...]

    @model_validator(mode="after")
    def _complete(self) -> Self:
        for line in self.lines:
            if {len(line.mean), len(line.sd or line.mean)} != {len(self.columns)}:
                raise ValueError(f"table {self.number}, {line.architecture}, {line.method}: not a number for each column")
        return self


class PaperNumbers(_Strict):
    """All tables of the paper, and their source."""

    source: str
    tables: tuple[PaperTable, ...]

    def find(self, data: str, kind: str) -> PaperTable | None:
        """Return the table of a data set, if the paper has one."""
        return next((table for table in self.tables if (table.data, table.kind) == (data, kind)), None)


@cache
def paper_numbers() -> PaperNumbers:
    """Read the file."""
    return PaperNumbers.model_validate(yaml.safe_load(_FILE.read_text(encoding="utf-8")))
