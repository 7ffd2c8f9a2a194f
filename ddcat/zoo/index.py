"""
The index of the zoo, which is part of the package: names, hashes and figures.

Hashes come with the program and the files from elsewhere, so that who can change the files cannot change what they must be.
"""

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from ddcat.errors import DdcatError
from ddcat.json_text import parse_model

__all__ = ["INDEX", "Entry", "Index", "StoredFile", "entry_of", "read_index"]

INDEX = Path(__file__).with_name("index.json")

_Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,120}$")]


class StoredFile(BaseModel):
    """A file of the zoo: its name beside the others, its size in bytes, its SHA-256 in hexadecimal."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: _Name
    bytes: int = Field(gt=0, le=64 * 2**20)
    sha256: _Sha256


class Entry(BaseModel):
    """
    A model of the zoo.

    Attributes
    ----------
    name : str
    network, data, method : str
        For a person.
    size : str
        Of the images that it was trained and judged on.
    checkpoint : StoredFile
        Its weights, matrices in float16: what `ddcat attack`, `ddcat export` and training take.
    bundle : StoredFile
        Its int8 engine for ONNX Runtime as a ZIP file of a bundle.
    digest : str
        Of the bundle.
    figures : mapping of str to float
        Measured ones, in [0, 1], by their names.
    trained : str
        The command of its training.
    licence : str
        Of the weights, and what they were trained on.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: _Name
    network: str
    data: str
    method: str
    size: str
    checkpoint: StoredFile
    bundle: StoredFile
    digest: _Sha256
    figures: dict[str, float]
    trained: str
    licence: str


class Index(BaseModel):
    """All models, in the order in which they are listed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: int = Field(1, ge=1, le=1)
    models: tuple[Entry, ...]


def read_index() -> Index:
    """
    Read the index that comes with ddcat.

    Raises
    ------
    DdcatError
        Where it cannot be read or is not one.
    """
    try:
        return parse_model(Index, INDEX.read_bytes())
    except (OSError, ValueError) as cause:
        raise DdcatError(f"{INDEX} is not an index of models ({cause}): install ddcat again") from cause


def entry_of(name: str, index: Index) -> Entry:
    """
    Return the model of a name.

    Raises
    ------
    DdcatError
        Where there is none; it names those that there are.
    """
    models = {entry.name: entry for entry in index.models}
    if name not in models:
        raise DdcatError(f"no model of the zoo is named {name!r}: expected one of {', '.join(models)}")
    return models[name]
