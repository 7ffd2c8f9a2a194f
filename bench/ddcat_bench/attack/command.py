"""How `ddcat attack` goes about it: alone or in several processes, interrupted or not, to a result folder."""

from pathlib import Path

from rich.console import Console

from ddcat.agent import under_agent
from ddcat.progress import progress
from ddcat_bench.attack.evaluation import Evaluation
from ddcat_bench.attack.markdown import attack_brief, attack_markdown
from ddcat_bench.attack.measure import measure, sweep_markdown
from ddcat_bench.attack.panels import attack_sheet
from ddcat_bench.attack.plots import plots
from ddcat_bench.attack.probe import FORWARDS
from ddcat_bench.attack.results import AttackResult
from ddcat_bench.attack.share import attack_share, probe_once
from ddcat_bench.attack.summing import sum_up
from ddcat_bench.output import claim, publish
from ddcat_bench.processes import begin, together
from ddcat_bench.subjects import main_branch
from ddcat_bench.units import forget_other, open_units, remove_work, work_folder
from ddcat_train.tf32 import forbid_tf32

__all__ = ["judge", "measure_sweep"]


def judge(evaluation: Evaluation, folder: Path, *, devices: int | None = None, force: bool = False) -> None:
    """
    Attack, and publish the result; what is done is kept beside it until then.

    Parameters
    ----------
    evaluation : Evaluation
    folder : Path
        Must not exist, or be empty, or hold an earlier result that `force` replaces.
    devices : int, optional
        Do it in that many processes, one for each GPU, or all on the CPU.
    force : bool
        Replace an earlier result.

    Raises
    ------
    BenchError, DataError, TrainError
    """
    with claim(folder, "attack", force=force):
        _judge(evaluation, folder, devices=devices, force=force)


def _judge(evaluation: Evaluation, folder: Path, *, devices: int | None, force: bool) -> None:
    forbid_tf32()
    work = work_folder(folder)
    if force and not under_agent():
        forget_other(work, evaluation.identity())
    if begin(devices, evaluation.device.type, work, evaluation.identity()):
        return
    result = _share(evaluation, work)
    if result is None:
        return  # the first process speaks for all
    sheet = attack_sheet(
        main_branch(evaluation.checkpoint, evaluation.device),
        evaluation.dataset,
        title=result.checkpoint.called,
        device=evaluation.device,
    )
    files = {**plots(result), "panels.png": sheet}
    publish(folder, "attack", result, attack_markdown(result), files, shown=attack_brief(result), force=force)
    remove_work(work)
    for alarm in result.alarms:
        Console(stderr=True).print(f"ALARM: {alarm.name}. {alarm.evidence}", style="bold red", soft_wrap=True)


def measure_sweep(evaluation: Evaluation, folder: Path, *, repeats: int, force: bool = False) -> None:
    """
    Time the sweep n = 1..7 beside a plain one, and publish the result.

    Parameters
    ----------
    evaluation : Evaluation
        Of which the checkpoint, the data, the batch size and the device count.
    folder : Path
        Must not exist, or be empty, or hold an earlier result that `force` replaces.
    repeats : int
    force : bool
        Replace an earlier result.

    Raises
    ------
    BenchError, DataError
    """
    forbid_tf32()
    with claim(folder, "attack-measure", force=force):
        with progress("sweeping", 2 * (repeats + 1), unit="sweeps") as advance:
            result = measure(evaluation, repeats=repeats, advance=advance)
        publish(folder, "attack-measure", result, sweep_markdown(result), force=force)


def _share(evaluation: Evaluation, work: Path) -> AttackResult | None:
    """Do this process's share; the first one then gives the result of all."""
    with together(work) as ranks:
        units = open_units(work, evaluation.identity())
        if ranks.rank:
            attack_share(evaluation, units, rank=ranks.rank, ranks=ranks.size)
            ranks.gather(None)
            return None
        with progress("attacking", evaluation.forwards + FORWARDS * evaluation.probed, unit="forwards") as advance:
            batches = attack_share(evaluation, units, ranks=ranks.size, advance=lambda forwards: advance(forwards * ranks.size))
            probe = probe_once(evaluation, units, advance=advance)
            ranks.gather(None)  # all have done their share
        return sum_up(evaluation, units, batches, probe)
