"""The log of a run: JSON lines for programs, TensorBoard for people, and a progress bar while it goes."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter

from ddcat.atomic_files import append_text, remove_temp_files, translate_os_errors, write_bytes, write_text
from ddcat.errors import WriteError
from ddcat.json_text import parse_json
from ddcat.progress import Rate
from ddcat.text import printable
from ddcat_train.data.dataset import U8
from ddcat_train.errors import TrainError
from ddcat_train.run.image_grid import to_png

__all__ = ["LINES", "PANELS", "TIMING", "RunLog", "read_lines", "totals"]

LINES, TIMING = "log.jsonl", "timing.jsonl"
PANELS = "panels"  # a folder


class RunLog:
    """
    The log of one session of a run.

    Parameters
    ----------
    run : Path
        The run directory.
    step : int
        Updates already done. Lines that an interrupted session wrote beyond them are dropped: this session writes them again.
    steps : int
        Updates of the whole run.
    evaluated : bool
        False where the evaluation after `step` is not done: its lines are dropped, too.
    """

    def __init__(self, run: Path, *, step: int, steps: int, evaluated: bool = True) -> None:
        self._run = run
        for name in (LINES, TIMING):
            kept = [
                line
                for line in read_lines(run / name)
                if line["step"] <= step
                and (evaluated or line["step"] < step or not any(key.startswith("val/") for key in line))
            ]
            write_text(run / name, "".join(f"{json.dumps(line)}\n" for line in kept))
        with translate_os_errors(run):
            self._board = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1)
        console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            Rate("steps"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("training", total=steps, completed=step, note="")
        self._console = console

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._progress.stop()
        try:
            with translate_os_errors(self._run):
                self._board.close()
        except WriteError:
            if error is None:  # otherwise that one matters
                raise

    def advance(self, step: int) -> None:
        """Advance the progress bar to a step."""
        self._progress.update(self._task, completed=step)

    def write(self, lines: Sequence[tuple[int, Mapping[str, float]]], *, seconds: float, waited: float) -> None:
        """
        Write the values of steps to the files. Raises `WriteError`.

        Parameters
        ----------
        lines : sequence of (int, mapping of str to float)
            Steps and their values.
        seconds : float
            Their total time.
        waited : float
            The part of it spent waiting for images.
        """
        if not lines:
            return
        self._write(lines)
        # In a file of its own, so that a resumed run leaves the same log, byte for byte.
        timing = {"step": lines[-1][0], "steps": len(lines), "seconds": round(seconds, 4), "waited": round(waited, 4)}
        append_text(self._run / TIMING, json.dumps(timing) + "\n")
        self._show(lines[-1][0], {"timing/step": seconds / len(lines), "timing/waited_share": waited / max(seconds, 1e-9)})

    def evaluation(self, step: int, scores: Mapping[str, float]) -> None:
        """Write and print the scores of an evaluation."""
        self._write([(step, {f"val/{name}": value for name, value in scores.items()})])
        text = ", ".join(f"{name} {value:.3f}" for name, value in scores.items())
        self._progress.update(self._task, note=text)
        self.say(f"step {step}: {text}")

    def panels(self, step: int, pixels: U8) -> None:
        """Write the panels of an evaluation, (H, W, 3)."""
        path = self._run / PANELS / f"step-{step:06}.png"
        remove_temp_files(path)
        write_bytes(path, to_png(pixels))
        with translate_os_errors(self._run):
            self._board.add_image("val/panels", pixels, step, dataformats="HWC")

    def say(self, text: str) -> None:
        """Print a line above the progress bar."""
        self._console.print(printable(text, 4000), highlight=False, markup=False, emoji=False, soft_wrap=True)

    def _write(self, lines: Sequence[tuple[int, Mapping[str, float]]]) -> None:
        append_text(self._run / LINES, "".join(json.dumps({"step": step, **numbers}) + "\n" for step, numbers in lines))
        for step, numbers in lines:
            self._show(step, {name if "/" in name else f"train/{name}": value for name, value in numbers.items()})

    def _show(self, step: int, numbers: Mapping[str, float]) -> None:
        with translate_os_errors(self._run):
            for tag, value in numbers.items():
                self._board.add_scalar(tag, value, step)


def totals(run: Path) -> dict[str, float]:
    """
    Sum the log of a run over all its sessions.

    Returns
    -------
    dict of str to float
        `seconds` of its steps, without evaluations; `waited_share`, the part of them spent waiting for images; with
        `data.skip_corrupt`, `skipped`, the number of images that were replaced by another.
    """
    timing = read_lines(run / TIMING)
    seconds = sum(line["seconds"] for line in timing)
    skipped = [line["skipped"] for line in read_lines(run / LINES) if "skipped" in line]
    shares = {"waited_share": round(sum(line["waited"] for line in timing) / seconds, 4)} if seconds else {}
    return {"seconds": round(seconds, 2)} | shares | ({"skipped": sum(skipped)} if skipped else {})


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read JSON lines, without a last one that a killed process left unfinished. Raises `TrainError`."""
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    lines = []
    for number, line in enumerate(text.splitlines(keepends=True), 1):
        if line.endswith("\n"):
            try:
                lines.append(parse_json(line))
            except ValueError as cause:
                raise TrainError(f"line {number} of {path} is not JSON that ddcat reads ({cause}): remove it") from cause
    return lines
