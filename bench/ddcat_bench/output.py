"""Result folders: whole or not at all, and shown when they are there."""

from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel
from rich.console import Console
from rich.markdown import Markdown

from ddcat.files import new_directory, write_bytes, write_text
from ddcat_bench.result_files import to_json

__all__ = ["beside", "publish"]


def beside(bundle: Path, what: str) -> Path:
    """Name a folder beside a bundle: inside it, a file that the manifest does not list would be refused."""
    whole = bundle.resolve()
    return whole.with_name(f"{whole.name}-{what}")


def publish(folder: Path, name: str, result: BaseModel, markdown: str, files: Mapping[str, bytes] | None = None) -> None:
    """
    Write a result folder and show its tables.

    Parameters
    ----------
    folder : Path
        Must not exist, or be empty.
    name : str
        Of its files: NAME.json and NAME.md.
    result : pydantic model
    markdown : str
    files : mapping of str to bytes, optional
        Further files.
    """
    with new_directory(folder) as aside:
        write_text(aside / f"{name}.json", to_json(result))
        write_text(aside / f"{name}.md", markdown)
        for other, content in (files or {}).items():
            write_bytes(aside / other, content)
    console = Console()
    if console.is_terminal:
        console.print(Markdown(markdown))
    else:  # whoever reads it from a file or pipe gets the Markdown itself
        print(markdown)
    written = ", ".join([f"{name}.json", f"{name}.md", *(files or {})])
    console.print(f"{folder}: {written}", highlight=False, soft_wrap=True)
