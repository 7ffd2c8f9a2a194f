"""Judge a checkpoint or a bundle under corruptions, and publish the result."""

from collections.abc import Sequence
from pathlib import Path

from ddcat.bands import form_of
from ddcat.bundle import Bundle
from ddcat.choices import Device
from ddcat.progress import progress
from ddcat_bench.corruption.measure import CorruptionJob, measure
from ddcat_bench.corruption.report import corruption_brief, corruption_markdown, corruption_plot, corruption_sheet
from ddcat_bench.corruption.results import CorruptionResult
from ddcat_bench.describe import describe_data, describe_environment
from ddcat_bench.errors import BenchError
from ddcat_bench.judged import judged, open_data
from ddcat_bench.publish import claim, publish
from ddcat_bench.work_units import forget_other, remove_work, work_folder
from ddcat_train.corruptions import CORRUPTIONS
from ddcat_train.reference import Reference

__all__ = ["run_corruptions"]

_THREADS = 4  # more of them would be as many copies of an engine


def run_corruptions(
    source: Reference | Bundle,
    folder: Path,
    *,
    data_root: Path | None = None,
    split: str | None = None,
    names: Sequence[str] | None = None,
    max_images: int | None = None,
    seed: int = 0,
    device: Device = "auto",
    force: bool = False,
) -> CorruptionResult:
    """
    Corrupt, label, count and publish; finished parts are kept beside the result until then.

    Of a model the network in PyTorch is judged, on `device`; of a bundle its engine. The folder must not exist, or be empty, or
    hold an earlier result that `force` replaces. The images are those of training by default, and the corruptions all of
    `ddcat_train.corruptions.CORRUPTIONS`. Raises BenchError, DataError, EngineError.
    """
    if unknown := [name for name in names or () if name not in CORRUPTIONS]:
        raise BenchError(f"there is no corruption {unknown[0]!r}: use one of {', '.join(CORRUPTIONS)}")
    work = work_folder(folder)
    with claim(folder, "corruptions", force=force):
        dataset = open_data(source, data_root=data_root, split=split)
        if dataset.rule.channels != 3:
            raise BenchError(
                f"corruptions are of red, green and blue, and the images are {form_of(dataset.rule.channels)}: use other suites"
            )
        with judged(source, device, threads=_THREADS) as subject:
            job = CorruptionJob(
                subject.predict,
                subject.digest,
                dataset,
                names=tuple(names or CORRUPTIONS),
                batch_size=subject.batch_size,
                at_once=subject.at_once,
                max_images=max_images,
                seed=seed,
                threads=max(2, subject.threads),  # where one labels, another corrupts
            )
            if force:
                forget_other(work, job.identity())
            with progress("corrupting", job.labelled, unit="images") as advance:
                measured = measure(job, work, advance)
            result = CorruptionResult(
                checkpoint=subject.checkpoint,
                bundle=subject.bundle,
                data=describe_data(dataset, measured.images, usual_list=subject.usual_list),
                seed=seed,
                clean=measured.clean,
                rows=measured.rows,
                environment=describe_environment(subject.device, measured.seconds),
            )
            files = {"corruptions.png": corruption_plot(result), "panels.png": corruption_sheet(job, result.title)}
        text, brief = corruption_markdown(result), corruption_brief(result)
        publish(folder, "corruptions", result, text, files, shown=brief, force=force)
        remove_work(work)
    return result
