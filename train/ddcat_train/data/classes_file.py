"""`classes.yaml`: names, and perhaps colours, of the classes of a data set that brings its own."""

import re
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ddcat.classes import Classes
from ddcat.faults import first_fault
from ddcat_train.errors import DataError

__all__ = ["CLASSES_FILE", "classes_yaml", "read_classes", "read_clips"]

CLASSES_FILE = "classes.yaml"

_Byte = Annotated[int, Field(ge=0, le=255)]
_Colour = Annotated[tuple[_Byte, _Byte, _Byte], Field(strict=False)]  # YAML knows lists only


class _ClassesFile(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    names: list[Annotated[str, Field(min_length=1)]] = Field(min_length=2, max_length=254)
    colours: list[_Colour] | None = None
    clips: str | None = None

    @model_validator(mode="after")
    def _one_colour_each(self) -> "_ClassesFile":
        if self.colours is not None and len(self.colours) != len(self.names):
            raise ValueError(f"{len(self.names)} names, but {len(self.colours)} colours")
        if len(set(self.names)) != len(self.names):
            raise ValueError("a name occurs twice")
        return self

    @field_validator("clips")
    @classmethod
    def _an_expression(cls, clips: str | None) -> str | None:
        try:
            re.compile(clips or "")
        except re.error as cause:
            raise ValueError(f"{clips!r} is no regular expression: {cause}") from cause
        return clips


def read_classes(path: Path) -> Classes:
    """
    Read `names`, a list in the order of the label values, and perhaps `colours`, a list of [red, green, blue].

    Raises
    ------
    DataError
    """
    parsed = _read(path)
    if parsed.colours is None:
        return Classes.with_voc_palette(parsed.names)
    return Classes(tuple(parsed.names), tuple(parsed.colours))


def read_clips(path: Path) -> str | None:
    """
    Read `clips` of such a file: the expression by which images that are frames of video belong together; None: not said.

    Raises
    ------
    DataError
    """
    return _read(path).clips


def _read(path: Path) -> _ClassesFile:
    right = "'names: [background, road, ...]' in the order of the label values would be right"
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise DataError(f"{path} holds no table: {right}")
        return _ClassesFile.model_validate(content)
    except OSError as cause:
        raise DataError(f"cannot read {path}: {cause.strerror}; {right}") from cause
    except (yaml.YAMLError, UnicodeDecodeError) as cause:
        raise DataError(f"{path} is not YAML ({' '.join(str(cause).split())}): {right}") from cause
    except ValidationError as cause:
        raise DataError(f"{path}: {first_fault(cause)}; {right}") from cause


def classes_yaml(classes: Classes) -> str:
    """Text of the file that `read_classes` reads back."""
    content = {"names": list(classes.names), "colours": [list(colour) for colour in classes.palette]}
    return yaml.safe_dump(content, sort_keys=False, default_flow_style=None)
