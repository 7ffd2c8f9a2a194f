"""Result folders: written whole or not at all, by one process at a time, and printed."""

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from pydantic import BaseModel
from rich.console import Console
from rich.markdown import Markdown

from ddcat.agent import launched, under_agent
from ddcat.atomic_files import atomic_directory, check_can_create, write_bytes, write_text
from ddcat.locks import locked
from ddcat_bench.errors import BenchError
from ddcat_bench.result_io import to_json

__all__ = ["claim", "publish", "show", "sibling_folder", "write_result"]


def sibling_folder(bundle: Path, what: str) -> Path:
    """Name a folder beside a bundle: inside it, a file that the manifest does not list would be refused."""
    whole = bundle.resolve()
    return whole.with_name(f"{whole.name}-{what}")


@contextlib.contextmanager
def claim(folder: Path, name: str, *, force: bool = False) -> Iterator[None]:
    """
    Make sure that a result can be written, before the long work for it, and keep other processes from writing there meanwhile.

    Of several processes that share the work, the first one holds the folder for all.

    Parameters
    ----------
    name : str
        Name of the result: its file is NAME.json.
    force : bool
        An earlier result of that name may be replaced.

    Raises
    ------
    BenchError
        If the folder holds something else, or a result that is not to be replaced.
    DdcatError
        At once, where another process is at work on the folder; or the folder is where a disk is mounted.
    WriteError
    """
    whole = folder.resolve()
    with contextlib.ExitStack() as held:
        first = not under_agent() or os.environ.get("RANK", "0") == "0"
        if first and not launched():  # the process that launched others holds it for them
            message = f"another process is at work on {folder}: wait until it has ended, or name another --out"
            held.enter_context(locked(whole.with_name(f".{whole.name}.lock"), message))
        _check(folder, name, force=force)
        yield


def _check(folder: Path, name: str, *, force: bool) -> None:
    taken = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
    if not taken:
        check_can_create(folder)
    elif not (folder / f"{name}.json").is_file():
        raise BenchError(f"{folder} exists already, and was not written by this command: use another --out")
    elif not force:
        raise BenchError(f"{folder} exists already: use --force to replace the earlier result, or another --out")
    else:
        check_can_create(folder.parent / f".{folder.name}.new")  # the same folder is written in


def write_result(
    folder: Path,
    name: str,
    result: BaseModel,
    markdown: str,
    files: Mapping[str, bytes] | None = None,
    *,
    force: bool = False,
) -> None:
    """Write a result folder, as `claim` allows it: NAME.json, NAME.md and further files."""
    with atomic_directory(folder, replace=force) as aside:
        write_text(aside / f"{name}.json", to_json(result))
        write_text(aside / f"{name}.md", markdown)
        for other, content in (files or {}).items():
            write_bytes(aside / other, content)


def show(markdown: str, folder: Path, names: list[str]) -> None:
    """Print a result and its folder; a closed pipe is no error."""
    console = Console()
    try:
        if console.is_terminal:
            console.print(Markdown(markdown))
        else:  # whoever reads it from a file or pipe gets the Markdown itself
            print(markdown)
        console.print(f"{folder}: {', '.join(names)}", highlight=False, markup=False, soft_wrap=True)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python's own flush at exit fails, too


def publish(
    folder: Path,
    name: str,
    result: BaseModel,
    markdown: str,
    files: Mapping[str, bytes] | None = None,
    *,
    shown: str | None = None,
    force: bool = False,
) -> None:
    """Write a result folder as `write_result` does, and show the Markdown, or `shown` in its place."""
    write_result(folder, name, result, markdown, files, force=force)
    show(markdown if shown is None else shown, folder, [f"{name}.json", f"{name}.md", *(files or {})])
