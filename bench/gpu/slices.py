"""Commands that are run in slices of minutes, the first ones first, and go on in the next slice where the last one ended."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ddcat.atomic_files import write_text

__all__ = ["Task", "progress_markdown", "run_slice"]

_LEAST = 0.1  # of a slice: with less time left nothing is begun
_GRACE = 20  # seconds to end after SIGTERM
_TRIES = 2  # slices for a command that begins anew in each
_KEPT = 300  # characters of the last line of an error


class Task(NamedTuple):
    """
    A command with the file that it makes.

    Attributes
    ----------
    made : Path
        The command is done where this file is.
    command : sequence
        "ddcat" and "python" are those of this environment.
    needs : Path or None
        A file of an earlier task, without which this one is left out.
    minutes : float or None
        Where it goes on in the next slice: how long it may take in all. None: it begins anew in each slice.
    """

    made: Path
    command: Sequence[object]
    needs: Path | None = None
    minutes: float | None = None


def run_slice(tasks: Sequence[Task], state_file: Path, *, minutes: float) -> bool:
    """
    Run tasks in their order until the time is over, and write down what became of each.

    Returns
    -------
    bool
        True where nothing is left to do: each task is done, has failed, or has had its time.
    """
    end = time.monotonic() + 60 * minutes
    state: dict[str, Any] = json.loads(state_file.read_text(encoding="utf-8")) if state_file.exists() else {}
    for task in tasks:
        entry = state.setdefault(str(task.made), {"slices": 0, "seconds": 0.0, "ended": None})
        if entry["ended"] is not None or (task.needs is not None and not task.needs.exists()):
            continue
        left = end - time.monotonic()
        if left < 60 * minutes * _LEAST:
            return False
        began = time.monotonic()
        entry["ended"] = _run(task, left if task.minutes is None else min(left, 60 * task.minutes - entry["seconds"]))
        entry["slices"], entry["seconds"] = entry["slices"] + 1, entry["seconds"] + time.monotonic() - began
        if entry["ended"] is None and _had_its_time(task, entry):
            entry["ended"] = f"stopped after {entry['seconds']:.0f} s"
        write_text(state_file, json.dumps(state, indent=1) + "\n")
    write_text(state_file, json.dumps(state, indent=1) + "\n")
    return all(
        state[str(task.made)]["ended"] is not None or (task.needs is not None and not task.needs.exists()) for task in tasks
    )


def progress_markdown(tasks: Sequence[Task], state_file: Path) -> str:
    """Write what became of each task, as a table."""
    state = json.loads(state_file.read_text(encoding="utf-8"))
    rows = [(str(task.made), state.get(str(task.made))) for task in tasks]
    lines = [
        f"| {name} | {entry['seconds']:.0f} | {entry['slices']} | {entry['ended'] or 'not done'} |"
        if entry
        else f"| {name} | | | |"
        for name, entry in rows
    ]
    return "\n".join(["| task | seconds | slices | |", "|---|---:|---:|---|", *lines, ""])


def _had_its_time(task: Task, entry: dict[str, Any]) -> bool:
    if task.minutes is None:
        return bool(entry["slices"] >= _TRIES)
    return bool(entry["seconds"] >= 60 * task.minutes)


def _run(task: Task, seconds: float) -> str | None:
    """Run a command for so long at most; gives how it ended, None where it has to go on."""
    if task.made.exists():
        return "done"
    words = [str(word) for word in task.command]
    print(f"$ {shlex.join(words)}", flush=True)
    program = sys.executable if words[0] == "python" else str(Path(sys.executable).with_name(words[0]))
    process = subprocess.Popen(
        [program, *words[1:]], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        _, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.communicate(timeout=_GRACE)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
        return "done" if task.made.exists() else None
    if process.returncode == 0 and task.made.exists():
        return "done"
    last = (errors.strip().splitlines() or ["no reason"])[-1][:_KEPT]
    return f"failed with {process.returncode}: {last}"
