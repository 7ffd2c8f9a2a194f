"""
The manifest: the only description of a bundle.

A bundle is a directory: `model.onnx`, further files of its engine, `golden.safetensors`, and `manifest.json`. Export writes the
manifest once and nobody changes it; it names the SHA-256 of every other file. It holds no time, so that the same checkpoint and
options give the same bytes.
"""

from typing import Annotated, Final, Literal

from pydantic import Field, model_validator

from ddcat.choices import EngineName, Precision
from ddcat.classes import Classes, repeated_name
from ddcat.confidence import CONFIDENCE_OUTPUT, Abstention, Temperature
from ddcat.errors import BundleError
from ddcat.json_text import parse_json, parse_model
from ddcat.manifest_precision import (
    FileName,
    MixedPrecision,
    Positive,
    Quantisation,
)
from ddcat.preprocess import AS_STORED, FileRule
from ddcat.schema import Count, Details, Method, Name, Sha256, StrictModel, Text
from ddcat.text import printable
from ddcat.tiles import Tiles

__all__ = [
    "GOLDEN_TOLERANCE",
    "SCHEMA_VERSION",
    "ClassEntry",
    "DataSource",
    "Device",
    "DeviceKinds",
    "DimRange",
    "EngineEntry",
    "FileEntry",
    "Golden",
    "InputShapes",
    "MainBranchProof",
    "Manifest",
    "Preprocessing",
    "Sizes",
    "SourceCheckpoint",
    "TensorEntry",
    "parse_manifest",
]

SCHEMA_VERSION: Final = 3
_READ: Final = (2, 3)  # of schema 2, files keep their size, and `data.long_side` says how they were evaluated

UInt8 = Annotated[int, Field(ge=0, le=255)]
Size = Annotated[int, Field(ge=1, le=2**31)]  # of an axis
Sizes = tuple[tuple[Size, Size], ...]  # (height, width)
Deviation = Annotated[float, Field(gt=0)]
LARGEST_FILE: Final = 2**31  # bytes: no ONNX file can be larger


class FileEntry(StrictModel):
    """A file of the bundle."""

    sha256: Sha256
    bytes: int = Field(ge=0, le=LARGEST_FILE)


class SourceCheckpoint(StrictModel):
    """The checkpoint, or the ONNX file of another program, that the bundle was made from."""

    kind: Literal["checkpoint", "onnx"] = Field(default="checkpoint", description="onnx: an ONNX file of another program.")
    checkpoint: Text = Field(description="Path of the checkpoint, or of the file, at the export.")
    sha256: Sha256
    git_commit: Name | None = Field(description="Commit of the code that exported it; '+changes' follows for an unclean tree.")
    method: Method = Field(description="Method of its training: undefended, sat, ddcat, ...; 'ONNX file' where nobody says.")
    attack: Details | None = Field(description="Attack of its training; None: there was none.")
    architecture: Text = Field(description="Backbone and context, for example 'mobilenet_v2 + pyramid'.")
    step: Count | None = Field(description="Updates of its training; None: imported, and not known.")
    output: Name | None = Field(default=None, description="Output of an ONNX file that holds the logits.")


class MainBranchProof(StrictModel):
    """The proof that the graph is the main branch alone: see `ddcat_export.main_branch`."""

    spare_parameters: Count = Field(description="Elements of the auxiliary, mask and deep-supervision heads.")
    bytes_unchanged: Literal[True] = Field(
        description="The graph that is exported without those heads is the same to the byte."
    )
    multiply_adds: Positive = Field(
        description="Multiply-adds of the graph for one image, and of a network without those heads."
    )
    size: tuple[Size, Size] = Field(strict=False, description="(height, width) of that image.")


class DataSource(StrictModel):
    """The data set that the checkpoint was trained on, and the split that the engine is evaluated on."""

    name: Name
    root: Text = Field(description="its folder; empty: none was given")
    split: Name
    list_sha256: Sha256 | None = Field(description="SHA-256 of the names of the split's images, one a line; None: not known.")
    images: Positive | None = Field(description="Images of the split; None: not known.")
    long_side: Size | None = Field(
        default=None,
        description="Of schema 2 alone: the longer side to which images were resized before the engine was evaluated, and to "
        "which clients must resize theirs.",
    )


class ClassEntry(StrictModel):
    """A class, at the place of its label value."""

    name: Name
    colour: tuple[UInt8, UInt8, UInt8] = Field(strict=False)


class Preprocessing(FileRule):
    """What becomes of an image file before the graph; and the graph's own first step, (input / 255 - mean) / std, in fp32."""

    colour: Literal["RGB", "bands"] = Field(default="RGB", description="bands: those that `bands` names.")
    layout: Literal["NHWC"] = "NHWC"
    mean: tuple[float, ...] = Field(strict=False, description="Of each channel.")
    std: tuple[Deviation, ...] = Field(strict=False, description="Of each channel.")
    tiles: Tiles | None = Field(
        default=None, description="How larger images are cut, after all of this but the last step; None: they are not."
    )

    @model_validator(mode="after")
    def _of_each_channel(self) -> "Preprocessing":
        if not len(self.mean) == len(self.std) == self.channels:
            raise ValueError(f"expected mean and std of {self.channels} channels, got {len(self.mean)} and {len(self.std)}")
        if (self.colour == "bands") != (self.bands is not None):
            raise ValueError(f"colour {self.colour} and bands {self.bands} do not go together")
        return self

    def cuts(self, height: int, width: int) -> bool:
        """Return whether an image of some size, as prepared for the graph, is cut into tiles."""
        return self.tiles is not None and self.tiles.cut(height, width)


class DimRange(StrictModel):
    """Sizes that an axis may have, both ends included."""

    minimum: Size
    maximum: Size | None = Field(description="Upper end of the range; None: there is none.")

    @model_validator(mode="after")
    def _ordered(self) -> "DimRange":
        if self.maximum is not None and self.maximum < self.minimum:
            raise ValueError(f"maximum {self.maximum} is below minimum {self.minimum}")
        return self

    def __contains__(self, size: int) -> bool:
        return self.minimum <= size and (self.maximum is None or size <= self.maximum)


class InputShapes(StrictModel):
    """The input sizes that the engine takes."""

    batch: DimRange
    height: DimRange
    width: DimRange
    sizes: Sizes | None = Field(
        default=None,
        strict=False,
        description="The only (height, width) taken, ascending by pixels; None: all in the ranges.",
    )

    @model_validator(mode="after")
    def _within(self) -> "InputShapes":
        if self.sizes is not None:
            for axis, sides in zip((self.height, self.width), zip(*self.sizes, strict=True), strict=True):
                if (min(sides), max(sides)) != (axis.minimum, axis.maximum):
                    raise ValueError("the ranges of height and width are not those of the sizes")
        return self


class TensorEntry(StrictModel):
    """An input or output of the graph; a string names an axis whose size is free within `InputShapes`."""

    name: Name
    dtype: Literal["uint8", "float32"]
    shape: tuple[Count | Name, ...] = Field(strict=False, max_length=8)


class Device(StrictModel):
    """The device that a compiled plan is bound to."""

    name: Name = Field(description="Name of the GPU, as its driver reports it.")
    compute_capability: Name
    driver: Name
    runtime: Name = Field(description="Runtime and its version, for example 'tensorrt 10.13.2.6'.")


class DeviceKinds(StrictModel):
    """The kinds of GPU that a plan of TensorRT for RTX is for; the GPU that loads it finishes it."""

    compute_capabilities: tuple[Name, ...] = Field(
        strict=False, min_length=1, max_length=32, description="Compute capabilities of the GPUs, for example '8.9'."
    )
    runtime: Name = Field(description="Runtime and its version, for example 'tensorrt_rtx 1.7.1.116'.")


class EngineEntry(StrictModel):
    """The runtime that the bundle was built with."""

    name: EngineName
    file: FileName = Field(description="File that the runtime loads.")
    graph: FileName = Field(
        default="model.onnx", description="The typed ONNX file for all runtimes, which engines are built from."
    )
    requested_precision: Precision
    effective_precision: Precision = Field(
        description="Precision that the runtime itself reports, or that of the types in the graph."
    )
    provider: Name = Field(description="Provider that the runtime itself reports.")
    options: dict[Name, Text | Count | bool] = Field(default={}, description="Options of its build.")
    built_for: Device | DeviceKinds | None = Field(
        default=None, description="Device that it was built for; None: it runs on any machine that has the runtime."
    )


GOLDEN_TOLERANCE = 0.02  # share of the golden labels that may differ on another machine, by default


class Golden(StrictModel):
    """Images, clean and adversarial, with their labels when the bundle was exported."""

    file: FileName
    images: Positive = Field(description="Clean images; there are as many adversarial ones.")
    source: Text = Field(description="Origin of the images.")
    attack: Details
    labelled_by: Text | None = Field(
        default=None, description="What gave the labels, where no GPU that the engine is for was there; None: this engine."
    )


class Manifest(StrictModel):
    """The description of a bundle, complete when it is written."""

    schema_version: Literal[2, 3] = SCHEMA_VERSION
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100, description="Name of the model at a server.")
    files: dict[FileName, FileEntry]
    source: SourceCheckpoint
    rebuilt_from: Sha256 | None = Field(
        default=None, description="Digest of the bundle whose graph this is; None: exported from the checkpoint."
    )
    main_branch_only: MainBranchProof | None = Field(description="None: made from an ONNX file, which has no other heads")
    data: DataSource
    classes: tuple[ClassEntry, ...] = Field(strict=False, min_length=2, max_length=254)
    ignore_index: Literal[255] = 255
    preprocessing: Preprocessing
    shapes: InputShapes
    inputs: tuple[TensorEntry, ...] = Field(strict=False, max_length=16)
    outputs: tuple[TensorEntry, ...] = Field(strict=False, max_length=16)
    opset: int = Field(ge=1, le=1000)
    engine: EngineEntry
    quantisation: Quantisation | None = Field(default=None, description="Quantisation of the graph; None: it is not int8.")
    mixed: MixedPrecision | None = Field(
        default=None, description="Nodes of an fp16 or bf16 graph that stay in fp32; None: none were looked for."
    )
    temperature: Temperature | None = Field(default=None, description="Of the confidence; None: 1, or there is no confidence.")
    abstention: Abstention | None = Field(default=None, description="By its confidence; None: the engine answers all pixels.")
    golden: Golden | None = Field(default=None, description="Golden images; None: there are none.")
    versions: dict[Name, Name]

    @model_validator(mode="after")
    def _complete(self) -> "Manifest":
        named = {self.engine.graph: "the engine's graph", self.engine.file: "the engine's file"}
        if self.golden is not None:
            named[self.golden.file] = "the golden file"
        if self.quantisation is not None and self.quantisation.report is not None:
            named[self.quantisation.report] = "the report on int8"
        if self.mixed is not None:
            named[self.mixed.report] = "the report on nodes"
        for file, what in named.items():
            if file not in self.files:
                raise ValueError(f"{what} {file!r} is not among the files")
        if (name := repeated_name([entry.name for entry in self.classes])) is not None:
            raise ValueError(f"two classes are named {name!r}")
        if self.schema_version == 2 and self.preprocessing.resize is not None:
            raise ValueError("preprocessing.resize is of schema 3, and this is schema 2")
        if self.preprocessing.tiles is not None and "logits" not in [output.name for output in self.outputs]:
            raise ValueError("preprocessing.tiles needs the output logits: tiles are blended in them")
        if CONFIDENCE_OUTPUT not in [output.name for output in self.outputs]:
            for name, value in (("temperature", self.temperature), ("abstention", self.abstention)):
                if value is not None:
                    raise ValueError(f"{name} is of the output confidence, which there is not")
        if self.schema_version > 2 and self.data.long_side is not None:
            raise ValueError("data.long_side is of schema 2: preprocessing.resize says it")
        return self

    @property
    def evaluation_rule(self) -> FileRule:
        """The rule that the engine is evaluated by: that of the files that it is served, but for bundles of schema 2."""
        if self.data.long_side is None:
            return FileRule(**{name: getattr(self.preprocessing, name) for name in FileRule.model_fields})
        return AS_STORED.with_long_side(self.data.long_side)

    def class_table(self) -> Classes:
        """Names and colours of the classes."""
        return Classes(tuple(c.name for c in self.classes), tuple(c.colour for c in self.classes))

    def to_bytes(self) -> bytes:
        """Write as JSON; the same manifest gives the same bytes."""
        return self.model_dump_json(indent=2).encode() + b"\n"


def parse_manifest(content: bytes, where: str) -> Manifest:
    """
    Read a manifest, strictly.

    Raises
    ------
    BundleError
        Naming the first entry that is missing, unknown or of a wrong type, after `where`.
    """
    _check_version(content, where)
    try:
        return parse_model(Manifest, content)
    except ValueError as cause:
        raise BundleError(f"{where} is not a manifest that ddcat reads: {cause}") from cause


def _check_version(content: bytes, where: str) -> None:
    # before anything else is read: another version has other entries
    try:
        version = parse_json(content)["schema_version"]
    except (ValueError, KeyError, TypeError):
        return  # whatever else is wrong is said by the model
    if version not in _READ:
        raise BundleError(
            f"{where} has schema_version {printable(repr(version))}, and this ddcat reads {' and '.join(map(str, _READ))}: "
            "install the ddcat that wrote the bundle, or export it again with this one"
        )
