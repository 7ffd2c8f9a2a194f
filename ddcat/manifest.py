"""
The manifest: the only description of a bundle.

A bundle is a directory: `model.onnx`, further files of its engine, and `manifest.json`. Export writes the manifest once and
nobody changes it; it names the SHA-256 of every other file. It holds no time, so that the same checkpoint and options give the
same bytes.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ddcat.classes import Classes
from ddcat.errors import BundleError

__all__ = [
    "ClassEntry",
    "DataSource",
    "EngineEntry",
    "FileEntry",
    "MainBranchProof",
    "Manifest",
    "Precision",
    "Preprocessing",
    "Range",
    "Shapes",
    "Source",
    "TensorEntry",
    "parse_manifest",
]

Precision = Literal["fp32", "bf16", "fp16", "int8"]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Byte = Annotated[int, Field(ge=0, le=255)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class FileEntry(_Strict):
    """A file of the bundle."""

    sha256: Sha256
    bytes: int = Field(ge=0)


class Source(_Strict):
    """The checkpoint that the bundle was made from."""

    checkpoint: str = Field(description="its path when it was exported")
    sha256: Sha256
    git_commit: str | None = Field(description="of the code that exported it; ends in '+changes' for an unclean tree")
    method: str = Field(description="how it was trained: clean, sat, ddcat, ...")
    attack: dict[str, Any] | None = Field(description="the attack of its training; None where there was none")
    architecture: str = Field(description="backbone and context, for example 'mobilenet_v2 + pyramid'")
    step: int | None = Field(ge=0, description="updates that it was trained for; None: imported, and not known")


class MainBranchProof(_Strict):
    """The evidence that nothing but the main branch is in the graph: see `ddcat_export`."""

    spare_parameters: int = Field(ge=0, description="elements of the auxiliary, mask and deep-supervision heads, set to NaN")
    bytes_unchanged: Literal[True] = Field(description="the graph exported with those NaN is the same to the byte")


class DataSource(_Strict):
    """The data that the checkpoint was trained on, and the split that the engine is judged on."""

    name: str
    root: str
    split: str
    list_sha256: Sha256 | None = Field(description="of the names of the split's images, one a line; None: not known")
    images: int | None = Field(ge=1, description="of the split; None: not known")
    long_side: int | None = Field(description="images are resized to it before anything else; None: they are not")


class ClassEntry(_Strict):
    """A class, at the place of its label value."""

    name: str
    colour: tuple[Byte, Byte, Byte] = Field(strict=False)


class Preprocessing(_Strict):
    """What the graph itself does to its uint8 input: (input / 255 - mean) / std, in fp32."""

    colour: Literal["RGB"] = "RGB"
    layout: Literal["NHWC"] = "NHWC"
    mean: tuple[float, float, float] = Field(strict=False)
    std: tuple[float, float, float] = Field(strict=False)


class Range(_Strict):
    """Sizes that an axis may have, both ends included."""

    minimum: int = Field(ge=1)
    maximum: int | None = Field(description="None: no upper end")

    @model_validator(mode="after")
    def _ordered(self) -> "Range":
        if self.maximum is not None and self.maximum < self.minimum:
            raise ValueError(f"maximum {self.maximum} is below minimum {self.minimum}")
        return self

    def __contains__(self, size: int) -> bool:
        return self.minimum <= size and (self.maximum is None or size <= self.maximum)


class Shapes(_Strict):
    """The input sizes that the engine takes."""

    batch: Range
    height: Range
    width: Range


class TensorEntry(_Strict):
    """An input or output of the graph; a string names an axis whose size is free within `Shapes`."""

    name: str
    dtype: Literal["uint8", "float32"]
    shape: tuple[int | str, ...] = Field(strict=False)


class EngineEntry(_Strict):
    """The runtime that the bundle was built and checked with."""

    name: Literal["ort", "openvino", "trt"]
    file: str = Field(description="the file that the runtime loads")
    requested_precision: Precision
    effective_precision: Precision
    provider: str = Field(description="as the runtime itself reports it")


class Manifest(_Strict):
    """Everything that is known about a bundle when it is written."""

    schema_version: Literal[1] = 1
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="the model's name at a server")
    files: dict[str, FileEntry]
    source: Source
    main_branch_only: MainBranchProof
    data: DataSource
    classes: tuple[ClassEntry, ...] = Field(strict=False)
    ignore_index: Literal[255] = 255
    preprocessing: Preprocessing
    shapes: Shapes
    inputs: tuple[TensorEntry, ...] = Field(strict=False)
    outputs: tuple[TensorEntry, ...] = Field(strict=False)
    opset: int = Field(ge=1)
    engine: EngineEntry
    versions: dict[str, str]

    @model_validator(mode="after")
    def _complete(self) -> "Manifest":
        if self.engine.file not in self.files:
            raise ValueError(f"the engine's file {self.engine.file!r} is not among the files")
        return self

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
    try:
        return Manifest.model_validate_json(content)
    except ValidationError as cause:
        first = cause.errors()[0]
        entry = ".".join(str(part) for part in first["loc"]) or "the whole file"
        raise BundleError(f"{where} is not a manifest that ddcat reads: {entry}: {first['msg']}") from cause
