"""The most memory that a training step takes."""

import contextlib
import multiprocessing
import os
import tempfile
from collections.abc import Iterator, Mapping
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from bench.paper.contenders import SMALL, ContenderName, Plan, contend, draw_batch
from ddcat_bench.errors import BenchError
from ddcat_bench.timing.pytorch_models import torch_settings
from ddcat_bench.timing.serving_memory import resident

__all__ = ["MEMORY", "peak_memory"]

MEMORY = {
    "cpu": (
        "Peak memory: the most that stayed resident (VmHWM) in a process that does nothing else, less what did before the "
        "network was built. Its C library gives what is freed back at once: the figure is what tensors take, not how a heap is "
        "fragmented, which changes from run to run."
    ),
    "cuda": "Peak memory: the most that tensors took on the device (max_memory_allocated) in a process that does nothing else.",
}

_GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}  # bytes; glibc reads them at its start


def peak_memory(plan: Plan, name: ContenderName) -> int | None:
    """
    Let a fresh process take one step at the smallest crop, for what the optimiser keeps, and one at the full one.

    Returns
    -------
    int or None
        Bytes, as `MEMORY` says; None where the system does not tell.

    Raises
    ------
    BenchError
        If the process dies, most often for want of memory.
    """
    context = multiprocessing.get_context("spawn")  # a fork would have what this process has, and no device
    ours, its = context.Pipe(duplex=False)
    process = context.Process(target=_tell_peak, args=(its, plan, name), daemon=True)
    with _environment(_GIVE_BACK):
        process.start()
    its.close()
    try:
        peak: int | None = ours.recv()
    except EOFError as cause:
        process.join()
        raise BenchError(
            f"the process that takes a step of {name} alone died ({process.exitcode}), probably because memory ran out: "
            "use a smaller --batch or --crop"
        ) from cause
    process.join()
    return peak


def _tell_peak(connection: Connection, plan: Plan, name: ContenderName) -> None:
    connection.send(_peak(plan, name))


def _peak(plan: Plan, name: ContenderName) -> int | None:
    with torch_settings(plan.threads, tf32=plan.tf32), tempfile.TemporaryDirectory() as folder:
        before = resident("VmRSS")
        contender = contend(plan, name, Path(folder))
        contender.step(draw_batch(plan, (SMALL, SMALL)))
        if plan.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        contender.step(draw_batch(plan))
        if plan.device == "cuda":
            torch.cuda.synchronize()
            return torch.cuda.max_memory_allocated()
        after = resident("VmHWM")
    return None if before is None or after is None else after - before


@contextlib.contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set variables for the processes that are started meanwhile."""
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
