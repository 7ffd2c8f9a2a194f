"""Options that several commands have."""

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["DataRoot", "Limit", "MovedCheckpoint", "Split"]

DataRoot = Annotated[Path | None, typer.Option(help="Where the data set lies now, if it has moved since training.")]
Split = Annotated[str | None, typer.Option(help="Judge on this split.", show_default="the validation split of training")]
Limit = Annotated[int | None, typer.Option(min=1, help="Judge that many images, spread evenly over the split.")]
MovedCheckpoint = Annotated[Path | None, typer.Option(help="Where the bundle's checkpoint lies now, if it has moved.")]
