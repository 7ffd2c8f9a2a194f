"""Options that several commands have."""

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["DataRoot", "Force", "Limit", "MovedCheckpoint", "Split"]

DataRoot = Annotated[Path | None, typer.Option(help="Where the data set lies now, if it has moved since training.")]
Split = Annotated[str | None, typer.Option(help="Score this split.", show_default="the validation split of training")]
Limit = Annotated[int | None, typer.Option(min=1, help="Score this many images, spread evenly over the split.")]
MovedCheckpoint = Annotated[Path | None, typer.Option(help="Where the bundle's checkpoint lies now, if it has moved.")]
Force = Annotated[
    bool, typer.Option("--force", help="Replace an earlier result of this command. Without it an existing folder is refused.")
]
