"""The result file of `ddcat fidelity`."""

from typing import Literal

from pydantic import Field

from ddcat.schema import Fraction, StrictModel
from ddcat_bench.attack.results import AttackName
from ddcat_bench.result_schema import BundleEntry, CheckpointEntry, DataEntry, Environment, Scores

__all__ = ["FidelityResult", "FidelityRow"]


class FidelityRow(StrictModel):
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
        """Heading of its row: clean, n = 3."""
        return "clean" if self.name == "clean" else f"n = {self.steps}"


class FidelityResult(StrictModel):
    """The result of `ddcat fidelity`."""

    schema_version: Literal[1] = 1
    kind: Literal["fidelity"] = "fidelity"
    bundle: BundleEntry
    checkpoint: CheckpointEntry
    data: DataEntry
    protocol: str
    rows: tuple[FidelityRow, ...]
    environment: Environment
