"""`classes.yaml`: the classes of a data set that brings its own, and what the values and colours of its masks mean."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from ddcat.classes import IGNORE_INDEX, Classes, Colour
from ddcat.error_text import first_validation_error, unknown_key
from ddcat.text import printable
from ddcat.yaml_text import parse_yaml
from ddcat_train.data.class_names import class_names
from ddcat_train.data.files import read_text
from ddcat_train.data.pictures import U8
from ddcat_train.errors import DataError

__all__ = ["CLASSES_FILE", "NO_CLASS", "Legend", "Table", "classes_yaml", "read_classes", "read_legend"]

CLASSES_FILE = "classes.yaml"
NO_CLASS = IGNORE_INDEX - 1  # what a value that the file does not name becomes: no data set has so many classes

_HELP = "use 'names: [background, road, ...]' in the order of the label values"
_EXAMPLES = {  # of the other keys
    "colours": "colours: [[128, 64, 128], [64, 0, 128]]",
    "ignore_label": "ignore_label: [11, 12]",
    "ignore_colour": "ignore_colour: [0, 0, 0]",
    "clips": "clips: '(.+)_[0-9]+'",
}
_MOST_BYTES = 1 << 20


@dataclass(frozen=True)
class Table:
    """Takes values of masks to labels; it can be pickled and compared."""

    labels: bytes  # of the values 0..255

    def __call__(self, values: U8) -> U8:
        """Decode values, (H, W) uint8, to labels, (H, W) uint8."""
        return np.asarray(np.frombuffer(self.labels, np.uint8)[values], dtype=np.uint8)


@dataclass(frozen=True)
class Legend:
    """
    Meaning of the masks of a data set.

    Attributes
    ----------
    table : Table
        Label of each value of a mask: 0..K-1, 255 = ignored, `NO_CLASS`.
    colours : mapping of (red, green, blue) to int, or None
        Label of each colour, where the file gives colours.
    clips : str or None
        The expression by which images that are frames of video belong together; None: not said.
    """

    classes: Classes
    table: Table
    colours: Mapping[Colour, int] | None
    clips: str | None


def _listed(one: Any) -> Any:
    """Wrap one label, or one colour, in a list."""
    if isinstance(one, int):
        return [one]
    return [one] if isinstance(one, list) and len(one) == 3 and all(isinstance(value, int) for value in one) else one


_Byte = Annotated[int, Field(ge=0, le=255)]
_Rgb = Annotated[tuple[_Byte, _Byte, _Byte], Field(strict=False)]  # YAML knows lists only


class _ClassesFile(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    names: dict[int, str]  # as `class_names` gives them
    colours: list[_Rgb] | None = None
    ignore_label: Annotated[list[_Byte], BeforeValidator(lambda one: [one] if isinstance(one, int) else one)] = []
    ignore_colour: Annotated[list[_Rgb], BeforeValidator(_listed)] = []

    clips: str | None = None

    @field_validator("clips")
    @classmethod
    def _an_expression(cls, clips: str | None) -> str | None:
        try:
            re.compile(clips or "")
        except re.error as cause:
            raise ValueError(f"{printable(clips, 100)!r} is not a regular expression: {cause}") from cause
        return clips

    @model_validator(mode="after")
    def _one_meaning_each(self) -> "_ClassesFile":
        names = list(self.names.values())
        if self.colours is not None and len(self.colours) != len(names):
            raise ValueError(f"{len(names)} names, but {len(self.colours)} colours: give every class one colour")
        if used := sorted(set(self.ignore_label) & self.names.keys()):
            raise ValueError(
                f"ignore_label {used[0]} is the value of {self.names[used[0]]!r}: leave that name out, and number the others, "
                "'names: {1: road, 2: car}'"
            )
        if self.ignore_colour and self.colours is None:
            raise ValueError("ignore_colour is for masks in colours: give the classes colours, too")
        if shared := set(self.ignore_colour) & set(self.colours or ()):
            raise ValueError(f"ignore_colour {list(shared.pop())} is the colour of a class")
        return self


def read_classes(path: Path) -> Classes:
    """Read the classes of a file that `read_legend` reads. Raises `DataError`."""
    return read_legend(path).classes


def read_legend(path: Path) -> Legend:
    """
    Read a `classes.yaml`.

    `names` is a list in the order of the label values 0, 1, ..., or a table from label value to name, {1: road, 2: car}. Other
    keys may follow: `colours`, a list of [red, green, blue] in the order of the names; `ignore_label`, values that are ignored
    like 255; `ignore_colour`, colours that are ignored; `clips`. A value that has a name is a class, 255 too.
    Raises `DataError`.
    """
    try:
        text = read_text(path, most=_MOST_BYTES)
    except DataError as error:
        raise DataError(f"{error}; {_HELP}") from error
    try:
        content = parse_yaml(text)
    except ValueError as cause:
        raise DataError(f"{path} is not readable YAML ({cause}): {_HELP}") from cause
    if not isinstance(content, dict) or "names" not in content:
        raise DataError(f"{path} holds no table with the key names: {_HELP}")
    try:
        numbered = class_names(content["names"], yaml.load(text, yaml.BaseLoader).get("names"))
        parsed = _ClassesFile.model_validate(content | {"names": numbered})
    except ValidationError as cause:
        key = str((*cause.errors()[0]["loc"], "")[0])
        example = f"; use '{_EXAMPLES[key]}'" if key in _EXAMPLES else ""
        fault = unknown_key(cause, _ClassesFile.model_fields) or f"{first_validation_error(cause)}{example}"
        raise DataError(f"{path}: {fault}") from cause
    except ValueError as cause:
        raise DataError(f"{path}: {cause}") from cause
    values = sorted(parsed.names)
    names = [parsed.names[value] for value in values]
    table = np.full(256, NO_CLASS, np.uint8)
    table[[IGNORE_INDEX, *parsed.ignore_label]] = IGNORE_INDEX
    table[values] = np.arange(len(values))
    if parsed.colours is None:
        return Legend(Classes.with_voc_palette(names), Table(table.tobytes()), None, parsed.clips)
    # the colours are in the order in which the names were written down
    colours = dict(zip(parsed.names, parsed.colours, strict=True))
    palette = tuple(colours[value] for value in values)
    meanings = dict.fromkeys(parsed.ignore_colour, IGNORE_INDEX) | {colour: label for label, colour in enumerate(palette)}
    return Legend(Classes(tuple(names), palette), Table(table.tobytes()), meanings, parsed.clips)


def classes_yaml(classes: Classes) -> str:
    """Return the text of a file that `read_classes` reads back to the same."""
    content = {"names": list(classes.names), "colours": [list(colour) for colour in classes.palette]}
    return yaml.safe_dump(content, sort_keys=False, default_flow_style=None)
