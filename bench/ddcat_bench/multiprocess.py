"""Processes that share a long evaluation by a folder of finished units; one that was interrupted continues."""

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
from ddcat_bench.work_units import open_units
from ddcat_train.distributed.launch import launch
from ddcat_train.distributed.ranks import Ranks, check_device, init_hosts

__all__ = ["launch_if_needed", "process_group"]


def launch_if_needed(jobs: int | None, device: str, work: Path, identity: dict[str, Any]) -> bool:
    """
    Launch the processes that --jobs asks for, one for each GPU or all on the CPU, and wait for them.

    They share the folder of units `work`; if it is that of another evaluation, it is refused before they start. Returns True if
    they have done the work; otherwise this process does it: where `jobs` is None, it is alone, or torchrun has started it.
    Raises BenchError, TrainError.
    """
    if jobs is None or launched():
        return False
    if under_agent():
        raise BenchError(f"--jobs {jobs} under torchrun: use its --nproc-per-node instead")
    if jobs < 1:
        raise BenchError(f"--jobs {jobs}: use 1 or more")
    check_device(device, jobs)
    open_units(work, identity)
    if jobs > 1:
        again = f"ddcat {shlex.join(sys.argv[1:])}"
        launch(jobs, reached=lambda: f"the parts in {work}", again=again)
    return jobs > 1


@contextmanager
def process_group(work: Path) -> Iterator[Ranks]:
    """
    Join the other processes, if there are any, which share the folder of units `work`.

    Ctrl-C and SIGTERM end the work with one line on how to continue.
    """
    try:
        with _interruptible(), init_hosts() as ranks:
            yield ranks
    except KeyboardInterrupt:
        if not rank():
            typer.echo(f"error: interrupted: finished parts are in {work}, and the same command continues", err=True)
        raise typer.Exit(128 + signal.SIGINT) from None


@contextmanager
def _interruptible() -> Iterator[None]:
    """Treat SIGTERM like Ctrl-C."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
