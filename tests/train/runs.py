"""Runs of the tests: stopped ones, commands, and whether two are the same."""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ddcat_train.checkpoints import LAST, load_checkpoint
from ddcat_train.config import Config
from ddcat_train.data.loader import Batch
from ddcat_train.run.loop import train
from ddcat_train.run.trainer import Trainer
from tests.train.ranks import FORK

Finished = Callable[[Config], Path]


def assert_same(run: Path, whole: Path) -> None:
    """Of the last checkpoints every tensor, and every line of the logs."""
    expected, found = (load_checkpoint(folder / LAST).tensors for folder in (whole, run))
    assert expected.keys() == found.keys()
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
    assert (run / "log.jsonl").read_text() == (whole / "log.jsonl").read_text()


def stop_after(
    step: int, config: Config, run: Path, monkeypatch: pytest.MonkeyPatch, number: int = signal.SIGTERM, **options: Any
) -> None:
    """Begin a run, and stop it by a signal in the middle of a step, which is finished."""
    apply = Trainer.train_step

    def stopped(self: Trainer, batch: Batch) -> Any:
        if self.step == step - 1:
            signal.raise_signal(number)
        return apply(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", stopped)
        outcome = train(config, run, **options)
    assert (outcome.step, outcome.signal) == (step, number)


class Command:
    """A command line in a process group of its own; forked, so that it need not import torch again."""

    def __init__(self, main: Callable[[], object], arguments: list[str], printed: Path) -> None:
        self._printed = printed
        self.process = FORK.Process(target=self._run, args=(main, arguments))
        self.process.start()

    def _run(self, main: Callable[[], object], arguments: list[str]) -> None:
        os.setsid()
        with self._printed.open("w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
        sys.argv = ["command", *arguments]
        torch.set_num_threads(1)
        main()

    def end(self) -> tuple[int | None, list[str]]:
        """Wait for it; its exit status, and what it printed beside the usual lines of a run."""
        self.process.join(300)
        self.process.kill()
        lines = self._printed.read_text().splitlines()
        return self.process.exitcode, [
            line for line in lines if not line.startswith(("ddcat: ", "starts ", "step ", "the loader "))
        ]
