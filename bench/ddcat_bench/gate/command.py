"""How `ddcat gate` goes about it: timed first, attacked by one process or several, published, put into the bundle."""

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
from ddcat_bench.gate.attacked import Attacked, attack_pool
from ddcat_bench.gate.case import Case
from ddcat_bench.gate.conclusion import conclude, passport_of
from ddcat_bench.gate.findings import needs_quiet
from ddcat_bench.gate.limits import Limits
from ddcat_bench.gate.pictures import Overlay, legend, overlays
from ddcat_bench.gate.report import gate_brief, gate_html, gate_junit, gate_markdown
from ddcat_bench.gate.results import GateResult
from ddcat_bench.gate.twin import twin_of
from ddcat_bench.gate.words import title
from ddcat_bench.output import claim, show, write_result
from ddcat_bench.processes import begin, together
from ddcat_bench.result_files import read_result
from ddcat_bench.subjects import main_branch
from ddcat_bench.timing.cost import CostResult, measure_cost
from ddcat_bench.timing.memory import serving_peak
from ddcat_bench.timing.results import SpeedResult
from ddcat_bench.timing.speed import draw_inputs, measure
from ddcat_bench.units import forget_other, remove_work, work_folder

__all__ = ["judge"]

_ATTEMPTS = 3  # at timing, where the machine is too busy to decide; the last one counts


def judge(
    case: Case,
    limits: Limits,
    folder: Path,
    *,
    repeats: int,
    devices: int | None = None,
    key: Path | None = None,
    pictures: bool = True,
    force: bool = False,
) -> GateResult | None:
    """
    Judge a bundle, publish the result, and write its passport; what is done is kept beside the result until then.

    Parameters
    ----------
    case : Case
    limits : Limits
        Of the engine's precision.
    folder : Path
        Must not exist, or be empty, or hold an earlier result that `force` replaces.
    repeats : int
        Timed calls of each contender.
    devices : int, optional
        Attack in that many processes.
    key : Path, optional
        Private key that signs the passport.
    pictures : bool
        Whether the page shows images of the data set.
    force : bool
        Replace an earlier result.

    Returns
    -------
    GateResult or None
        None in a process that another one speaks for.

    Raises
    ------
    BenchError, BundleError, DataError, EngineError, TrainError, WriteError
    """
    with claim(folder, "gate", force=force):
        return _judge(case, limits, folder, repeats=repeats, devices=devices, key=key, pictures=pictures, force=force)


def _judge(
    case: Case,
    limits: Limits,
    folder: Path,
    *,
    repeats: int,
    devices: int | None,
    key: Path | None,
    pictures: bool,
    force: bool,
) -> GateResult | None:
    began = time.monotonic()
    check_writable(case.bundle.path)  # where the passport will be
    if key is not None:
        check_key(key)
    case.check_labels()
    twin_of(case.bundle)  # what it cannot attack it says before any other work
    work = work_folder(folder)
    if force and not under_agent():
        forget_other(work, case.identity())
    if begin(devices, "cpu", work, case.identity()):
        return read_result(folder / "gate.json", GateResult)
    with together(work) as ranks:
        timed = _timed(case, limits, repeats) if ranks.rank == 0 else None  # first: the attacks leave a load behind
        ranks.gather(None)
        threads = max(1, physical_cores() // ranks.size)
        with open_engine(case.bundle, threads=threads) as engine, progress("attacking", case.forwards, unit="forwards") as told:
            attacked = attack_pool(case, engine, work, lambda forwards: told(forwards * ranks.size), ranks=ranks)
            shown = _look(case, engine, attacked) if pictures and ranks.rank == 0 else None
    if timed is None:
        return None
    speed, cost = timed
    result = conclude(case, attacked, speed, limits, seconds=time.monotonic() - began, cost=cost)
    _publish(case, folder, result, gate_html(result, shown, legend(case.dataset.classes)), key, force=force)
    return None if launched() else result  # the process that launched this one speaks for it


def _timed(case: Case, limits: Limits, repeats: int) -> tuple[SpeedResult, CostResult | None]:
    threads = physical_cores()
    inputs = draw_inputs(case.bundle, case.dataset, repeats=repeats, batch=1, size=None)
    peak = functools.cache(serving_peak)  # memory does not depend on how quiet the machine is: it is taken once
    with (
        open_engine(case.bundle, threads=threads) as engine,
        progress("timing", _ATTEMPTS * 3 * len(inputs.batches), unit="calls") as advance,
    ):
        for _ in range(_ATTEMPTS):
            speed = measure(case.bundle, engine, case.checkpoint, inputs, threads=threads, peak=peak, advance=advance)
            if not needs_quiet(speed, limits):
                break
        if case.budget.name == "quick":
            return speed, None
        return speed, measure_cost(case.bundle, engine, (speed.height, speed.width))


def _look(case: Case, engine: Engine, attacked: Attacked) -> tuple[Overlay, ...]:
    reference = main_branch(case.checkpoint, torch.device("cpu"))
    return overlays(reference, engine, case.dataset, attacked.names, attacked.judged[0].flips)


def _publish(case: Case, folder: Path, result: GateResult, page: str, key: Path | None, *, force: bool) -> None:
    files = {"gate.xml": gate_junit(result).encode(), "report.html": page.encode()}
    write_result(folder, "gate", result, gate_markdown(result), files, force=force)
    write_passport(case.bundle, passport_of(case.bundle, result), key=key)
    write_in_turn(case.bundle.path / REPORT, page.encode())
    remove_work(work_folder(folder))
    show(gate_brief(result), folder, ["gate.json", "gate.md", *files])
    told = Console(stderr=True, highlight=False, soft_wrap=True)  # the end of a pipeline's log, where a reader begins
    told.print(title(result), markup=False)
