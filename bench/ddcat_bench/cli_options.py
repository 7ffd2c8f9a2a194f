"""Options that several commands share, and the choices of options."""

from pathlib import Path
from typing import Annotated, Literal

import typer

__all__ = ["AnySuite", "DataRoot", "Force", "MaxImages", "MovedCheckpoint", "ProtocolName", "Split", "SuiteName"]

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
