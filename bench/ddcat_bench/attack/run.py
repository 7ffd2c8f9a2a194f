"""Run an attack job to its result folder, in one process or several; a run that was interrupted continues."""

from pathlib import Path

from rich.console import Console

from ddcat.agent import under_agent
from ddcat.progress import progress
from ddcat_bench.attack.aggregate import aggregate
from ddcat_bench.attack.job import AttackJob
from ddcat_bench.attack.panels import attack_sheet
from ddcat_bench.attack.plots import plots
from ddcat_bench.attack.probe import FORWARDS
from ddcat_bench.attack.rank_work import attack_rank_work, probe_once
from ddcat_bench.attack.report import attack_brief, attack_markdown
from ddcat_bench.attack.results import AttackResult
from ddcat_bench.inputs import main_branch
from ddcat_bench.multiprocess import launch_if_needed, process_group
from ddcat_bench.publish import claim, publish
from ddcat_bench.work_units import forget_other, open_units, remove_work, work_folder
from ddcat_train.tf32 import forbid_tf32

__all__ = ["run_job"]


def run_job(job: AttackJob, folder: Path, *, jobs: int | None = None, force: bool = False) -> None:
    """
    Attack, and publish the result; finished parts are kept beside it until then.

    Parameters
    ----------
    job : AttackJob
    folder : Path
        Must not exist, or be empty, or hold an earlier result that `force` replaces.
    jobs : int, optional
        Number of processes: one for each GPU, or all on the CPU.
    force : bool
        Replace an earlier result.

    Raises
    ------
    BenchError, DataError, TrainError
    """
    with claim(folder, "attack", force=force):
        forbid_tf32()
        work = work_folder(folder)
        if force and not under_agent():
            forget_other(work, job.identity())
        if launch_if_needed(jobs, job.device.type, work, job.identity()):
            return
        result = _attack(job, work)
        if result is None:
            return  # the first process speaks for all
        sheet = attack_sheet(
            main_branch(job.reference, job.device),
            job.dataset,
            title=result.checkpoint.method,
            device=job.device,
        )
        files = {**plots(result), "panels.png": sheet}
        publish(folder, "attack", result, attack_markdown(result), files, shown=attack_brief(result), force=force)
        remove_work(work)
        for alarm in result.alarms:
            Console(stderr=True).print(f"ALARM: {alarm.name}. {alarm.evidence}", style="bold red", soft_wrap=True)


def _attack(job: AttackJob, work: Path) -> AttackResult | None:
    """Do the work of this process; the first one then returns the result of all."""
    with process_group(work) as ranks:
        units = open_units(work, job.identity())
        if ranks.rank:
            attack_rank_work(job, units, rank=ranks.rank, ranks=ranks.size)
            ranks.gather(None)
            return None
        with progress("attacking", job.forwards + FORWARDS * job.probed, unit="forwards") as advance:
            batches = attack_rank_work(job, units, ranks=ranks.size, advance=lambda forwards: advance(forwards * ranks.size))
            probe = probe_once(job, units, advance=advance)
            ranks.gather(None)  # all have done their share
        return aggregate(job, units, batches, probe)
