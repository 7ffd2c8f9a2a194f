"""The result file of `ddcat attack --certify`."""

from typing import Literal

from pydantic import Field

from ddcat.schema import Fraction, StrictModel
from ddcat_bench.result_schema import BundleEntry, CheckpointEntry, DataEntry, Environment

__all__ = ["CertificateResult"]


class CertificateResult(StrictModel):
    """What no noise within the radius changes."""

    schema_version: Literal[1] = 1
    kind: Literal["certificate"] = "certificate"
    checkpoint: CheckpointEntry | None = Field(description="The model that was certified; null: an engine was.")
    bundle: BundleEntry | None = Field(description="The engine that was certified; null: a model was.")
    data: DataEntry
    seed: int
    sigma: float = Field(gt=0, description="Standard deviation of the noise, in [0, 1] units.")
    choosing: int = Field(ge=1, description="Samples that choose the class of a pixel.")
    samples: int = Field(ge=1, description="Further samples that count it.")
    tau: float = Field(ge=0.5, lt=1, description="The probability that is tested for.")
    alpha: float = Field(gt=0, lt=1, description="The probability that any certificate of an image is wrong.")
    radius: float = Field(
        gt=0, description="L2 norm, in [0, 1] units over all values of the image, below which nothing changes."
    )
    clean_miou: Fraction = Field(description="Of the base network, on images without noise.")
    clean_accuracy: Fraction
    smoothed_miou: Fraction = Field(description="Of the smoothed network, without a certificate.")
    certified_miou: Fraction = Field(description="A pixel without a certificate counts as missed.")
    certified_accuracy: Fraction = Field(description="Share of the labelled pixels that are certified and right.")
    abstained: Fraction = Field(description="Share of the labelled pixels without a certificate.")
    class_iou: tuple[Fraction | None, ...] = Field(description="Certified, of each class.")
    environment: Environment
