"""`ddcat zoo`: models that are ready to serve."""

from pathlib import Path
from typing import Annotated

import typer

from ddcat.progress import progress
from ddcat.zoo.fetch import FETCHED, default_source, fetch, verify
from ddcat.zoo.index import entry_of, read_index

__all__ = ["app"]

app = typer.Typer(
    help="List, fetch and verify models that are ready to serve.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)

_Name = Annotated[str, typer.Argument(metavar="NAME", help="A model, as ddcat zoo list names it.")]


@app.command("list")
def list_command() -> None:
    """
    List the models and their results.

    mIoU on the validation split, of the weights as they are stored; SEA is the worst of three attacks of the stated bound.

    For example:

    - `ddcat zoo list`
    """
    for entry in read_index().models:
        megabytes = (entry.checkpoint.bytes + entry.bundle.bytes) / 1e6
        typer.echo(f"{entry.name}  ({megabytes:.0f} MB)")
        typer.echo(f"  {entry.network}, {entry.method}, {entry.data} at {entry.size}")
        typer.echo(f"  mIoU: {', '.join(f'{name} {value:.3f}' for name, value in entry.figures.items())}")
    typer.echo("next: ddcat zoo fetch NAME")


@app.command("fetch")
def fetch_command(
    name: _Name,
    out: Annotated[Path | None, typer.Option(help="Folder to make. Default: the model's name.")] = None,
    source: Annotated[
        str | None,
        typer.Option("--from", metavar="FOLDER|URL", help="Where the files are. Default: the folder zoo of a clone."),
    ] = None,
) -> None:
    """
    Fetch a model: its checkpoint, and its int8 engine as a bundle that can be served at once.

    Every file must have the SHA-256 that this program knows; otherwise nothing is left in the folder.

    For example:

    - `ddcat zoo fetch camvid-efficientnet_lite2-pgd-at-4`
    - `ddcat zoo fetch camvid-efficientnet_lite2-pgd-at-4 --out models/street --from https://example.org/zoo`
    """
    entry = entry_of(name, read_index())
    folder = out or Path(name)
    with progress("fetching", entry.checkpoint.bytes + entry.bundle.bytes, unit="B") as advance:
        fetch(entry, folder, source or default_source(), advance=advance)
    typer.echo(f"{folder}: SHA-256 of {FETCHED[0]} and digest of {FETCHED[1]} are those of the index")
    typer.echo(f"licence: {entry.licence}")
    typer.echo(f"next: ddcat serve {folder / FETCHED[1]} --demo")


@app.command("verify")
def verify_command(
    name: _Name,
    folder: Annotated[Path, typer.Argument(help="Folder that ddcat zoo fetch made.")],
) -> None:
    """
    Check that a folder holds a model as it was published, byte for byte.

    For example:

    - `ddcat zoo verify camvid-efficientnet_lite2-pgd-at-4 models/street`
    """
    verify(entry_of(name, read_index()), folder)
    typer.echo(f"{folder} is {name}, byte for byte")
