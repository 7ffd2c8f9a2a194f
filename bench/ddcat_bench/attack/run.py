"""Run an attack job to its result folder, in one process or several; a run that was interrupted continues."""

import dataclasses
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
from ddcat_bench.attack.scoring import predict
from ddcat_bench.inputs import main_branch
from ddcat_bench.multiprocess import launch_if_needed, process_group
from ddcat_bench.perturbation.measure import PerturbationJob, measure_perturbations
from ddcat_bench.perturbation.report import perturbation_plot
from ddcat_bench.publish import claim, publish
from ddcat_bench.work_units import forget_other, open_units, remove_work, work_folder
from ddcat_train.tf32 import forbid_tf32

__all__ = ["run_job"]


def run_job(job: AttackJob, folder: Path, *, jobs: int | None = None, force: bool = False) -> None:
    """
    Attack in so many processes, and publish the result; finished parts are kept beside it until then.

    The folder must not exist, or be empty, or hold an earlier result that `force` replaces. Processes are one for each GPU, or
    all on the CPU. Raises BenchError, DataError, TrainError.
    """
    with claim(folder, "attack", force=force):
        forbid_tf32()
        _perturbations(job).check()
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
        if result.perturbations:
            files["perturbations.png"] = perturbation_plot(result.perturbations, result.data)
        publish(folder, "attack", result, attack_markdown(result), files, shown=attack_brief(result), force=force)
        remove_work(work)
        for alarm in result.alarms:
            Console(stderr=True).print(f"ALARM: {alarm.name}. {alarm.evidence}", style="bold red", soft_wrap=True)


def _attack(job: AttackJob, work: Path) -> AttackResult | None:
    """Do the work of this process; the first one then returns the result of all."""
    with process_group(work) as ranks:
        units = open_units(work, job.identity())
        others = _with_models(_perturbations(job), job)
        if ranks.rank:
            attack_rank_work(job, units, rank=ranks.rank, ranks=ranks.size)
            measure_perturbations(others, units, ranks=ranks)
            return None
        with progress("attacking", job.forwards + others.forwards + FORWARDS * job.probed, unit="forwards") as advance:

            def of_all(forwards: int) -> None:
                advance(forwards * ranks.size)

            batches = attack_rank_work(job, units, ranks=ranks.size, advance=of_all)
            probe = probe_once(job, units, advance=advance)
            perturbations = measure_perturbations(others, units, ranks=ranks, advance=of_all)  # waits for all
        return aggregate(job, units, batches, probe, perturbations)


def _perturbations(job: AttackJob) -> PerturbationJob:
    """Return the perturbations of the suite, without the model."""
    return PerturbationJob(
        job.dataset, job.plans, max_images=job.max_images, batch_size=job.batch_size, seed=job.seed, device=job.device
    )


def _with_models(perturbations: PerturbationJob, job: AttackJob) -> PerturbationJob:
    if not job.plans:
        return perturbations
    network = main_branch(job.reference, job.device)
    return dataclasses.replace(
        perturbations, makers={"model": network}, judges=(lambda images: predict(network, images).cpu().numpy(),)
    )
