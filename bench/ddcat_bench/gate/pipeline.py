"""Run a gate job: time the engine, attack in one process or several, publish the result, write the passport."""

import functools
import time
from pathlib import Path

import torch
from rich.console import Console

from ddcat.agent import launched, under_agent
from ddcat.atomic_files import check_writable, write_in_turn
from ddcat.bundle import REPORT
from ddcat.engines import Engine, open_engine
from ddcat.engines.cores import physical_cores
from ddcat.passport import write_passport
from ddcat.progress import progress
from ddcat.signing import check_key
from ddcat_bench.gate.checks import needs_quiet
from ddcat_bench.gate.job import GateJob
from ddcat_bench.gate.measurements import Measurements, attack_pool
from ddcat_bench.gate.overlays import Overlay, legend, overlays
from ddcat_bench.gate.report import gate_brief, gate_html, gate_junit, gate_markdown
from ddcat_bench.gate.results import GateResult
from ddcat_bench.gate.thresholds import Thresholds
from ddcat_bench.gate.verdict import conclude, passport_of
from ddcat_bench.gate.words import title
from ddcat_bench.inputs import main_branch
from ddcat_bench.multiprocess import launch_if_needed, process_group
from ddcat_bench.publish import claim, show, write_result
from ddcat_bench.result_io import read_result
from ddcat_bench.tiled import as_served
from ddcat_bench.timing.results import SpeedResult, ThroughputResult
from ddcat_bench.timing.serving_memory import serving_peak
from ddcat_bench.timing.speed import draw_inputs, measure
from ddcat_bench.timing.throughput import measure_throughput
from ddcat_bench.work_units import forget_other, remove_work, work_folder
from ddcat_export.twin.twin import twin_of

__all__ = ["run_job"]

_ATTEMPTS = 3  # at timing, where the machine is too busy to decide; the last one counts


def run_job(
    job: GateJob,
    thresholds: Thresholds,
    folder: Path,
    *,
    repeats: int,
    jobs: int | None = None,
    key: Path | None = None,
    pictures: bool = True,
    force: bool = False,
) -> GateResult | None:
    """
    Test a bundle, publish the result, and write its passport; finished parts are kept beside the result until then.

    Parameters
    ----------
    thresholds : Thresholds
        Thresholds of the engine's precision.
    folder : Path
        Must not exist, or be empty, or hold an earlier result that `force` replaces.
    repeats : int
        Timed calls of each contender.
    jobs : int, optional
        Number of processes that share the attacks.
    key : Path, optional
        Private key that signs the passport.
    pictures : bool
        True if the page shows images of the data set.

    Returns
    -------
    GateResult or None
        None in a process that another one speaks for.

    Raises
    ------
    BenchError, BundleError, DataError, EngineError, TrainError, WriteError
    """
    with claim(folder, "gate", force=force):
        began = time.monotonic()
        check_writable(job.bundle.path)  # where the passport will be
        if key is not None:
            check_key(key)
        job.check_labels()
        twin_of(job.bundle)  # what it cannot attack it says before any other work
        work = work_folder(folder)
        if force and not under_agent():
            forget_other(work, job.identity())
        if launch_if_needed(jobs, "cpu", work, job.identity()):
            return read_result(folder / "gate.json", GateResult)
        with process_group(work) as ranks:
            timed = _timed(job, thresholds, repeats) if ranks.rank == 0 else None  # first: the attacks leave a load behind
            ranks.gather(None)
            threads = max(1, physical_cores() // ranks.size)
            with (
                open_engine(job.bundle, threads=threads) as engine,
                progress("attacking", job.forwards, unit="forwards") as advance,
            ):
                measured = attack_pool(job, engine, work, lambda forwards: advance(forwards * ranks.size), ranks=ranks)
                shown = _draw_overlays(job, engine, measured) if pictures and ranks.rank == 0 else None
        if timed is None:
            return None
        speed, cost = timed
        result = conclude(job, measured, speed, thresholds, seconds=time.monotonic() - began, cost=cost)
        _publish(job, folder, result, gate_html(result, shown, legend(job.dataset.classes)), key, force=force)
        return None if launched() else result  # the process that launched this one speaks for it


def _timed(job: GateJob, thresholds: Thresholds, repeats: int) -> tuple[SpeedResult, ThroughputResult | None]:
    threads = physical_cores()
    size = None if job.tiles is None else (job.tiles.side, job.tiles.side)
    inputs = draw_inputs(job.bundle, job.dataset, repeats=repeats, batch=1, size=size)
    peak = functools.cache(serving_peak)  # memory does not depend on how quiet the machine is: it is taken once
    with (
        open_engine(job.bundle, threads=threads) as engine,
        progress("timing", _ATTEMPTS * 3 * len(inputs.batches), unit="calls") as advance,
    ):
        for _ in range(_ATTEMPTS):
            speed = measure(job.bundle, engine, job.reference, inputs, threads=threads, peak=peak, advance=advance)
            if not needs_quiet(speed, thresholds):
                break
        if job.budget.name == "quick":
            return speed, None
        return speed, measure_throughput(job.bundle, engine, (speed.height, speed.width))


def _draw_overlays(job: GateJob, engine: Engine, measured: Measurements) -> tuple[Overlay, ...]:
    reference = main_branch(job.reference, torch.device("cpu"))
    return overlays(
        reference, as_served(engine, job.bundle.manifest), job.dataset, measured.names, measured.pool[0].disagreement
    )


def _publish(job: GateJob, folder: Path, result: GateResult, page: str, key: Path | None, *, force: bool) -> None:
    files = {"gate.xml": gate_junit(result).encode(), "report.html": page.encode()}
    write_result(folder, "gate", result, gate_markdown(result), files, force=force)
    write_passport(job.bundle, passport_of(job.bundle, result), key=key)
    write_in_turn(job.bundle.path / REPORT, page.encode())
    remove_work(work_folder(folder))
    show(gate_brief(result), folder, ["gate.json", "gate.md", *files])
    console = Console(stderr=True, highlight=False, soft_wrap=True)  # the end of a pipeline's log, where a reader begins
    console.print(title(result), markup=False)
