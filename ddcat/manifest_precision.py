"""What a manifest says of an int8, fp16 or bf16 graph: how it became one, and what that costs."""

from typing import Annotated, Literal

from pydantic import Field

from ddcat.choices import CalibrationKind
from ddcat.schema import Count, Details, Fraction, Method, Name, Sha256, StrictModel, Text

__all__ = [
    "AccuracyDrop",
    "Calibration",
    "EqualLabels",
    "FileName",
    "Finetuning",
    "KeptNode",
    "MixedPrecision",
    "Positive",
    "Quantisation",
]

FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]  # flat: a key is joined to a folder
Positive = Annotated[Count, Field(ge=1)]


class Calibration(StrictModel):
    """The images that ranges of activations were measured on."""

    kind: CalibrationKind = Field(description="Kind of the images; mixed: half of them are adversarial.")
    images: Positive
    split: Name
    list_sha256: Sha256 = Field(description="SHA-256 of the names of the images, one a line.")
    attack: Details | None = Field(description="Attack on the adversarial ones; None: there are none.")


class AccuracyDrop(StrictModel):
    """The cost of the precision, in points of mIoU on the evaluated images."""

    clean: float
    adversarial: float
    images: Positive
    attack: Details


class Finetuning(StrictModel):
    """
    How weights were trained through the rounding of int8 after the export: they are not those of the checkpoint any more.

    The proofs and comparisons of the manifest are of the graph before it. Its nodes are the same; the values of its weights
    are not.
    """

    steps: Positive = Field(description="Updates of the weights.")
    batch_size: Positive = Field(description="Images of an update, crops of the training split.")
    method: Method = Field(description="Method that gave the images: that of the checkpoint, or sat in place of ddcat.")
    attack: Details | None = Field(
        description="Attack on the int8 network that made some or all of them; None: there was none."
    )
    graph: FileName = Field(description="File whose rounding the weights were trained through; others have the same weights.")
    elements: Positive = Field(description="Elements of the weights that were trained.")
    seed: Count


class Quantisation(StrictModel):
    """How a graph became int8: symmetric signed QDQ, one scale for each output channel of a weight."""

    calibration: Calibration | None = Field(description="None: another program quantised it.")
    float_layers: tuple[Text, ...] = Field(strict=False, description="Layers that stay in fp32.")
    quantised_layers: Positive
    max_drop: float | None = Field(description="Limit of lost points of mIoU; None: no limit was set.")
    drop: AccuracyDrop | None = Field(description="Points that are lost against the fp32 graph; None: not measured.")
    report: FileName | None = Field(default=None, description="File with every layer's sensitivity; None: not measured.")
    finetuning: Finetuning | None = Field(
        default=None, description="Training for int8; None: the weights are the checkpoint's."
    )


class EqualLabels(StrictModel):
    """Shares of the pixels that the graph labels as the fp32 graph does, on the evaluated images."""

    clean: Fraction
    adversarial: Fraction


class KeptNode(StrictModel):
    """A node of an fp16 or bf16 graph that computes in fp32."""

    name: Text
    reason: Literal["range", "weight", "labels"] = Field(
        description="range: a value that it reads, gives or sums is beyond half of what the precision holds; weight: one of "
        "its weights is; labels: its rounding is among those that move the logits most, and too many labels would change."
    )
    largest: float | None = Field(default=None, ge=0, description="Largest magnitude of that; None for labels.")


class MixedPrecision(StrictModel):
    """Which nodes of an fp16 or bf16 graph stay in fp32, and what the others cost."""

    kept: tuple[KeptNode, ...] = Field(strict=False, description="Nodes in fp32, but for those that follow and round nothing.")
    typed_nodes: Positive = Field(description="Nodes that round to the precision.")
    calibration: Calibration = Field(description="Images that the ranges were measured on.")
    max_drop: float = Field(description="Limit of lost points of mIoU.")
    drop: AccuracyDrop = Field(description="Points that are lost against the fp32 graph.")
    least_equal: Fraction = Field(description="Least share of equal labels, on clean and on attacked images.")
    equal_labels: EqualLabels
    report: FileName = Field(description="File with every node's sensitivity.")
