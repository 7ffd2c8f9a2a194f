"""Long evaluations in one process or in several that share a folder of finished units, interrupted or not."""

import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

from ddcat.agent import launched, rank, under_agent
from ddcat_bench.errors import BenchError
from ddcat_bench.units import open_units
from ddcat_train.launch import launch
from ddcat_train.ranks import Ranks, check_device, meet

__all__ = ["begin", "together"]


def begin(devices: int | None, device: str, work: Path, identity: dict[str, Any]) -> bool:
    """
    Start the processes that were asked for, and wait for them.

    Parameters
    ----------
    devices : int or None
        Processes, one for each GPU, or all on the CPU; None: this one alone, unless torchrun has started it.
    device : "cpu" or "cuda"
    work : Path
        The folder of units that they share.
    identity : dict
        Of the evaluation: another one's folder is refused before they start.

    Returns
    -------
    bool
        Whether they have done the work; otherwise this process is to do it.

    Raises
    ------
    BenchError, TrainError
    """
    if devices is None or launched():
        return False
    if under_agent():
        raise BenchError(f"--devices {devices} under torchrun: its --nproc-per-node says how many")
    if devices < 1:
        raise BenchError(f"--devices {devices}: use 1 or more")
    check_device(device, devices)
    open_units(work, identity)
    if devices > 1:
        again = f"ddcat {shlex.join(sys.argv[1:])}"
        launch(devices, reached=lambda: f"the parts in {work}", again=again)
    return devices > 1


@contextmanager
def together(work: Path) -> Iterator[Ranks]:
    """
    Meet the other processes, if there are any; Ctrl-C and SIGTERM end the work in one line that says how it continues.

    Parameters
    ----------
    work : Path
        What they share.
    """
    try:
        with _interruptible(), meet() as ranks:
            yield ranks
    except KeyboardInterrupt:
        if not rank():
            typer.echo(f"error: interrupted: what is done is in {work}, the same command continues", err=True)
        raise typer.Exit(128 + signal.SIGINT) from None


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let SIGTERM end it as Ctrl-C does."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
