"""`ddcat zoo`: models that are ready to serve."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

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
    List the models with what was measured of them.

    mIoU on the validation split, of the weights as they are stored; SEA is the worst of three attacks of the stated bound.

    For example:

    - `ddcat zoo list`
    """
    index = read_index()
    names = list(dict.fromkeys(name for entry in index.models for name in entry.figures))
    table = Table("name", "network", "method", "data", "MB", *names)
    for entry in index.models:
        figures = (f"{entry.figures[name]:.3f}" if name in entry.figures else "-" for name in names)
        size = f"{(entry.checkpoint.bytes + entry.bundle.bytes) / 1e6:.1f}"
        table.add_row(entry.name, entry.network, entry.method, f"{entry.data} {entry.size}", size, *figures)
    console = Console()
    console.print(table)
    console.print("next: ddcat zoo fetch NAME", highlight=False)


@app.command("fetch")
def fetch_command(
    name: _Name,
    out: Annotated[Path | None, typer.Option(help="Folder to make. Default: the model's name.")] = None,
    source: Annotated[
        str | None,
        typer.Option("--from", metavar="FOLDER|URL", help="Where the files lie. Default: the folder zoo of a clone."),
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
