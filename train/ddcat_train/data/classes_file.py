"""`classes.yaml`: names, and perhaps colours, of the classes of a data set that brings its own."""

from pathlib import Path
from typing import Annotated

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ddcat.classes import Classes
from ddcat.faults import first_fault
from ddcat_train.errors import DataError

__all__ = ["CLASSES_FILE", "classes_yaml", "read_classes"]

CLASSES_FILE = "classes.yaml"

_Byte = Annotated[int, Field(ge=0, le=255)]
_Colour = Annotated[tuple[_Byte, _Byte, _Byte], Field(strict=False)]  # YAML knows lists only


class _ClassesFile(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    names: list[Annotated[str, Field(min_length=1)]] = Field(min_length=2, max_length=254)
    colours: list[_Colour] | None = None

    @model_validator(mode="after")
    def _one_colour_each(self) -> "_ClassesFile":
        if self.colours is not None and len(self.colours) != len(self.names):
            raise ValueError(f"{len(self.names)} names, but {len(self.colours)} colours")
        if len(set(self.names)) != len(self.names):
            raise ValueError("a name occurs twice")
        return self


def read_classes(path: Path) -> Classes:
    """
    Read a file with `names`, a list in the order of the label values, and perhaps `colours`, a list of [red, green, blue].

    Raises
    ------
    DataError
    """
    right = "'names: [background, road, ...]' in the order of the label values would be right"
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise DataError(f"{path} holds no table: {right}")
        parsed = _ClassesFile.model_validate(content)
    except OSError as cause:
        raise DataError(f"cannot read {path}: {cause.strerror}; {right}") from cause
    except (yaml.YAMLError, UnicodeDecodeError) as cause:
        raise DataError(f"{path} is not YAML ({' '.join(str(cause).split())}): {right}") from cause
    except ValidationError as cause:
        raise DataError(f"{path}: {first_fault(cause)}; {right}") from cause
    if parsed.colours is None:
        return Classes.with_voc_palette(parsed.names)
    return Classes(tuple(parsed.names), tuple(parsed.colours))


def classes_yaml(classes: Classes) -> str:
    """Text of the file that `read_classes` reads back."""
    content = {"names": list(classes.names), "colours": [list(colour) for colour in classes.palette]}
    return yaml.safe_dump(content, sort_keys=False, default_flow_style=None)
