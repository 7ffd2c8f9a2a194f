"""The log of a run: JSON lines for programs, TensorBoard for people, and a progress bar while it goes."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from ddcat.files import write_text
from ddcat.progress import Rate
from ddcat_train.errors import TrainError

__all__ = ["RunLog"]

LINES = "log.jsonl"
_EVERY = 20  # steps between two writes: reading a loss back from the device waits for it


class RunLog:
    """
    Collects what the loop has to say.

    Parameters
    ----------
    run : Path
        The run directory.
    step : int
        Updates already done: what an interrupted run logged beyond them is dropped, for it will be logged again.
    steps : int
        Updates of the whole run.
    """

    def __init__(self, run: Path, *, step: int, steps: int) -> None:
        self._path = run / LINES
        lines = self._path.read_text(encoding="utf-8").splitlines(keepends=True) if self._path.is_file() else []
        write_text(self._path, "".join(line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step))
        self._board = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1)
        self._waiting: list[tuple[int, dict[str, Tensor | float]]] = []
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

    def __exit__(self, *error: object) -> None:
        self._progress.stop()
        self.flush()
        self._board.close()

    def update(self, step: int, values: Mapping[str, Tensor | float]) -> None:
        """Note the values of one step; they reach the files within some steps, or at `flush`."""
        self._waiting.append((step, dict(values)))
        self._progress.update(self._task, completed=step)
        if len(self._waiting) >= _EVERY:
            self.flush()

    def evaluation(self, step: int, scores: Mapping[str, float]) -> None:
        """Note the scores of an evaluation, and show them."""
        self.flush()
        self._write(step, {f"val/{name}": value for name, value in scores.items()})
        text = ", ".join(f"{name} {value:.3f}" for name, value in scores.items())
        self._progress.update(self._task, note=text)
        self.say(f"step {step}: {text}")

    def say(self, text: str) -> None:
        """Print a line above the progress bar."""
        self._console.print(text, highlight=False, soft_wrap=True)

    def flush(self) -> None:
        """
        Bring everything to the files.

        Raises
        ------
        TrainError
            Where a loss is not finite: such a run cannot recover.
        """
        waiting, self._waiting = self._waiting, []
        for step, values in waiting:
            numbers = {name: float(value) for name, value in values.items()}
            if not torch.tensor(list(numbers.values())).isfinite().all():
                raise TrainError(f"the loss is not finite at step {step} ({numbers}): lower optim.lr, or look at the data")
            self._write(step, numbers)

    def _write(self, step: int, numbers: Mapping[str, float]) -> None:
        line: dict[str, Any] = {"step": step, **numbers}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        for name, value in numbers.items():
            tag = name if "/" in name else f"train/{name}"
            self._board.add_scalar(tag, value, step)
