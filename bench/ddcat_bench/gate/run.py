"""The gate in Python: `ddcat.gate`."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from ddcat.agent import launched, under_agent
from ddcat.bundle import NO_TRUST_POLICY, TrustPolicy, open_bundle
from ddcat_bench.arguments import check_source, libraries_for
from ddcat_bench.bootstrap import check_clips
from ddcat_bench.errors import BenchError
from ddcat_bench.gate.budget import Budget
from ddcat_bench.gate.thresholds import DEFAULT, read_thresholds
from ddcat_bench.publish import sibling_folder

if TYPE_CHECKING:
    from ddcat_bench.gate.results import GateResult

__all__ = ["gate"]


def gate(
    bundle: str | Path,
    *,
    checkpoint: str | Path | None = None,
    data_root: str | Path | None = None,
    split: str | None = None,
    max_images: int | None = None,
    clips: str | None = None,
    thresholds: str | Path | None = None,
    quick: bool = False,
    steps: int = 20,
    queries: int = 500,
    query_stride: int = 10,
    repeats: int = 30,
    seed: int = 0,
    jobs: int | None = None,
    sign: str | Path | None = None,
    pictures: bool = True,
    out: str | Path | None = None,
    force: bool = False,
    trust: TrustPolicy = NO_TRUST_POLICY,
) -> "GateResult | None":
    """
    Test whether an engine is as accurate, as robust and as fast as its limits require, and write its passport into the bundle.

    The engine and the PyTorch model are scored on the worst attacks of a shared pool: made on the PyTorch model, on the
    engine's own graph, and with queries to the engine.

    Parameters
    ----------
    bundle : path
        Directory that `ddcat.export` wrote.
    checkpoint : path, optional
        Path of the bundle's checkpoint; the one that was exported by default.
    data_root : path, optional
        Folder of the data set; that of the training by default.
    split : str, optional
        The split that the manifest names by default.
    max_images : int, optional
        Most images to use, spread evenly over the split; all by default.
    clips : str, optional
        Regular expression whose first group in a file name is the video clip of the image; what the data set says by default.
    thresholds : path, optional
        YAML file with the limits that the engine must keep; those of the package by default.
    quick : bool
        Test on clean images and the paper's BIM, n = 3, only.
    steps : int
        Number of steps of each strong gradient attack.
    queries : int
        Number of queries per image of the attacks that query the engine.
    query_stride : int
        Run those attacks on every Nth image.
    repeats : int
        Number of timed calls of the engine and of PyTorch.
    seed : int
        Seed of random starts and of searches.
    jobs : int, optional
        Number of processes that share the attacks.
    sign : path, optional
        Private key (PEM) that signs the passport.
    pictures : bool
        True if the report shows images of the data set.
    out : path, optional
        Folder of the result; BUNDLE-gate beside the bundle by default.
    trust : TrustPolicy
        Signature and digest that the bundle must have.

    Returns
    -------
    GateResult or None
        With `verdict` "pass", "refuse" or "inconclusive". None in a process that another one speaks for.

    Raises
    ------
    BenchError, BundleError, DataError, EngineError, TrainError, WriteError
    """
    if under_agent() and not launched():
        raise BenchError("torchrun hides the exit status, which is the gate's verdict: use --jobs N without torchrun")
    budget = Budget("quick" if quick else "default", steps=steps, queries=queries, query_stride=query_stride, seed=seed)
    if quick:
        for name, value, usual in zip(budget._fields[1:], budget[1:], Budget()[1:], strict=True):
            if value != usual:
                option = f"--{name.replace('_', '-')} {value}"
                raise BenchError(f"{option}: --quick runs BIM, n = 3, only and does not use this option: leave it out")
    opened = open_bundle(Path(bundle), trust)
    allowed = read_thresholds(Path(thresholds) if thresholds else DEFAULT, opened.manifest.engine.effective_precision)
    source = check_source(opened, Path(checkpoint) if checkpoint else None)
    with libraries_for(opened):  # wrong arguments are reported before missing libraries
        from ddcat_bench.gate.job import GateJob
        from ddcat_bench.gate.pipeline import run_job
        from ddcat_bench.inputs import check_sizes, open_bundle_data, reference_of
    loaded = reference_of(opened, source)
    dataset = open_bundle_data(opened, data_root=Path(data_root) if data_root else None, split=split)
    if clips is not None:
        dataset = dataclasses.replace(dataset, clips=clips)
    check_clips(dataset)
    check_sizes(opened, dataset, cut=True)
    folder = Path(out) if out else sibling_folder(Path(bundle), "gate")
    return run_job(
        GateJob(opened, loaded, dataset, max_images, budget), allowed, folder, repeats=repeats, jobs=jobs,
        key=Path(sign) if sign else None, pictures=pictures, force=force,
    )  # fmt: skip
