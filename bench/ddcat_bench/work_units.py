"""Finished units of a long evaluation, kept in a folder, so that an evaluation that was stopped continues."""

import io
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ddcat.atomic_files import read_json, write_bytes, write_json, write_text
from ddcat_bench.errors import BenchError
from ddcat_bench.result_io import Result, read_result, to_json

__all__ = ["Units", "forget_other", "open_units", "remove_work", "work_folder"]

_IDENTITY = "run.json"
_LINE = 160  # letters


def work_folder(result: Path) -> Path:
    """Name the folder of unfinished work that belongs to a result folder."""
    whole = result.resolve()
    return whole.with_name(f"{whole.name}.work")


def remove_work(folder: Path) -> None:
    """Remove a folder of unfinished work, once its result is written."""
    shutil.rmtree(folder)


def forget_other(folder: Path, identity: dict[str, Any]) -> None:
    """Remove unfinished work of another evaluation; that of this one stays, and is continued."""
    file = folder / _IDENTITY
    if file.is_file() and _other(read_json(file, BenchError), identity) is not None:
        remove_work(folder)


class Units(NamedTuple):
    """Counts of finished units; a unit is one pass of an attack over one batch."""

    folder: Path

    def has(self, batch: int, plan: int) -> bool:
        """Return True if a unit is finished."""
        return self._file(batch, plan).is_file()

    def put(self, batch: int, plan: int, counts: npt.NDArray[Any], seconds: float) -> None:
        """Keep a unit's counts and its time in a file that is whole or absent."""
        buffer = io.BytesIO()
        np.savez_compressed(buffer, counts=counts, seconds=np.float64(seconds))
        write_bytes(self._file(batch, plan), buffer.getvalue())

    def get(self, batch: int, plan: int) -> tuple[npt.NDArray[Any], float]:
        """Read a finished unit. Raises BenchError if the file is missing or damaged."""
        file = self._file(batch, plan)
        if not file.is_file():
            raise BenchError(f"{file} is missing: use the same --out for all processes, on a file system that they share")
        try:
            with np.load(file) as read:
                return read["counts"], float(read["seconds"])
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as cause:
            raise BenchError(f"{file} is damaged: remove it, then run the same command again to repeat that part") from cause

    def once(self, name: str, kind: type[Result], make: Callable[[], Result]) -> Result:
        """Return another result, NAME.json, and make it first if it is not there."""
        kept = self.kept(name, kind)
        if kept is None:
            kept = make()
            write_text(self.folder / f"{name}.json", to_json(kept))
        return kept

    def kept(self, name: str, kind: type[Result]) -> Result | None:
        """Read it, if it is there. Raises BenchError if the file is damaged."""
        file = self.folder / f"{name}.json"
        return read_result(file, kind) if file.is_file() else None

    def _file(self, batch: int, plan: int) -> Path:
        return self.folder / f"{batch:05}-{plan:02}.npz"


def open_units(folder: Path, identity: dict[str, Any]) -> Units:
    """
    Open a folder of finished units, or begin one; `identity` is all that the counts depend on, as JSON.

    Raises BenchError if the folder belongs to another evaluation.
    """
    file = folder / _IDENTITY
    if file.is_file():
        before = read_json(file, BenchError)
        other = _other(before, identity)
        if other is not None:
            raise BenchError(
                f"{folder} belongs to another evaluation ({_difference(other, before.get(other), identity[other])}): repeat "
                "its command, name another --out, or remove the folder (--force does)"
            )
    elif folder.exists() and (not folder.is_dir() or any(not file.name.startswith(".") for file in folder.iterdir())):
        raise BenchError(f"{folder} does not hold unfinished work of this command: remove it, or use another --out")
    else:
        write_json(file, identity)
    return Units(folder)


def _other(before: dict[str, Any], identity: dict[str, Any]) -> str | None:
    return next((key for key in identity if before.get(key) != identity[key]), None)


def _difference(name: str, before: Any, now: Any) -> str:
    if isinstance(before, dict) and isinstance(now, dict):
        keys = sorted(key for key in {*before, *now} if before.get(key) != now.get(key))
        return f"{name}: " + ", ".join(f"{key} {before.get(key)}, now {now.get(key)}" for key in keys)
    short = f"{name} {before}, now {now}"
    return short if len(short) < _LINE else f"other {name}"
