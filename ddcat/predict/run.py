"""A run of `ddcat predict`: sources through the engine into a folder of results."""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ddcat.atomic_files import write_json
from ddcat.bundle import NO_TRUST_POLICY, TrustPolicy
from ddcat.engines.cores import physical_cores
from ddcat.engines.predictor import open_bundle
from ddcat.errors import DdcatError
from ddcat.extras import needing
from ddcat.locks import locked
from ddcat.predict.compute import compute, useful_streams
from ddcat.predict.records import JOB, Job
from ddcat.predict.results import Results
from ddcat.predict.sources import Source, fault_of_name
from ddcat.predict.summary import summarise

__all__ = ["SUMMARY", "predict"]

SUMMARY = "summary.json"


def predict(
    bundle: str | Path,
    sources: Sequence[Source],
    out: str | Path,
    *,
    formats: Sequence[str] = ("png", "coco"),
    batch: int = 1,
    threads: int | None = None,
    abstain: bool = False,
    on_ray: bool = False,
    trust: TrustPolicy = NO_TRUST_POLICY,
) -> dict[str, Any]:
    """
    Segment files, and write their masks and a summary.

    A run that was killed goes on where it was, with the same bytes in the end: call it again. Files that have changed since are
    done again.

    Parameters
    ----------
    bundle : path
        Directory that `ddcat.export` wrote.
    sources : sequence of Source
        What `ddcat.predict.sources.find_sources` finds.
    out : path
        A new folder, or one of an earlier run with the same bundle and options.
    formats : sequence of str
        Keys of `ddcat.predict.formats.FORMATS`.
    batch : int
        Images of one size that the engine computes at once.
    threads : int, optional
        Threads that compute, on each machine. Default: the physical cores.
    abstain : bool
        Write 255 where the confidence is not above the threshold of the bundle, which must have one.
    on_ray : bool
        Compute on the machines of a Ray cluster: see `ddcat.predict.on_ray`.
    trust : TrustPolicy
        The proof that the bundle must bring.

    Returns
    -------
    dict
        The summary, which ``summary.json`` holds, too: see `ddcat.predict.summary.summarise`.

    Raises
    ------
    DdcatError
        Where there is nothing to do, the folder is taken, the bundle or its engine is refused, or nothing can be written. An
        image that cannot be read is no error: the summary names it.
    """
    folder = Path(out)
    if (folder / JOB).exists():
        sources = [source for source in sources if not _is_within(source, folder)]
    if not sources:
        raise DdcatError(f"all inputs are in {folder}, the folder of the results: use another --out")
    unnamed = {source.name: fault for source in sources if (fault := fault_of_name(source.name))}
    sources = [source for source in sources if source.name not in unnamed]
    chosen = {*formats}
    if "overlay" in chosen and any(source.is_video for source in sources):
        chosen.add("png")  # a video is drawn at the end, from the masks of its frames
    with contextlib.ExitStack() as stack:
        cores = threads or physical_cores()
        streams = useful_streams(sources, batch=batch, threads=cores)
        opened = stack.enter_context(open_bundle(bundle, threads=cores, streams=1 if on_ray else streams, trust=trust))
        threshold = opened.threshold if abstain else None
        description = Job.settings_of(opened.description)
        job = Job(bundle=opened.bundle.digest, formats=tuple(sorted(chosen)), batch=batch, engine=description, abstain=abstain)
        stack.enter_context(locked(folder / ".lock", f"another ddcat predict is writing to {folder}: wait for it"))
        results = Results(folder, job)
        for source in sources:
            results.forget_changed(source)
        golden = opened.golden_statistics()
        failures: dict[str, str] = {}
        if on_ray:
            with needing("ray"):
                from ddcat.predict.on_ray import Work, compute_on_ray  # noqa: PLC0415 -- one machine needs none
            work = Work(Path(bundle), folder, job, cores, streams, abstain, trust)
            failures |= compute_on_ray(work, sources)
        else:
            compute(opened, sources, results, batch=batch, threshold=threshold, failures=failures)
        names = [name for source in sources if source.name not in failures for name in results.names(source)]
        results.collect(names, opened.classes)
        if "overlay" in chosen:
            for source in sources:
                if source.is_video and source.name not in failures:
                    results.draw_video(source, opened.classes)
        shown = {name.encode(errors="backslashreplace").decode(): fault for name, fault in unnamed.items()}
        ordered = shown | {source.name: failures[source.name] for source in sources if source.name in failures}
        summary = summarise(opened.bundle, map(results.read, names), golden, ordered, threshold)
        write_json(folder / SUMMARY, summary)
    return summary


def _is_within(source: Source, folder: Path) -> bool:
    """Return whether a file is one of the results: a pattern may name them."""
    return "://" not in source.address and Path(source.address).resolve().is_relative_to(folder.resolve())
