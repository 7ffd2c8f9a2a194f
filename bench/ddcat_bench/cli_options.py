"""Options that several commands share, and the choices of options."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

__all__ = [
    "AnySuite",
    "DataRoot",
    "Force",
    "ImageSize",
    "MaxImages",
    "MovedCheckpoint",
    "ProtocolName",
    "Split",
    "SuiteName",
    "out_option",
]

SuiteName = Literal["quick", "paper", "sea", "full"]
AnySuite = Literal[SuiteName, "corruptions"]
ProtocolName = Literal["whole", "windows"]

DataRoot = Annotated[Path | None, typer.Option(help="Folder of the data set, if it has moved since training.")]
Split = Annotated[
    str | None, typer.Option(help="Use this split of the data set.", show_default="the validation split of training")
]
MaxImages = Annotated[
    int | None, typer.Option(min=1, help="Use at most this many images, spread evenly over the split.", show_default="all")
]
MovedCheckpoint = Annotated[Path | None, typer.Option(help="Path of the bundle's checkpoint, if it has moved.")]
Force = Annotated[bool, typer.Option("--force", help="Replace an earlier result of this command, which is refused otherwise.")]
ImageSize = Annotated[
    str | None,
    typer.Option(metavar="HEIGHTxWIDTH", help="Size of the input images.", show_default="the engine's, or the data's"),
]


def out_option(default: str) -> Any:
    """Declare --out of a command, which has a folder by default."""
    return typer.Option(metavar="DIR", help="Write the result into this folder.", show_default=default)
