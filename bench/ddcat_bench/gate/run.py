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
from ddcat_bench.gate.limits import DEFAULT, read_limits
from ddcat_bench.output import beside

if TYPE_CHECKING:
    from ddcat_bench.gate.results import GateResult

__all__ = ["gate"]


def gate(
    bundle: str | Path,
    *,
    checkpoint: str | Path | None = None,
    data_root: str | Path | None = None,
    split: str | None = None,
    limit: int | None = None,
    clips: str | None = None,
    limits: str | Path | None = None,
    quick: bool = False,
    steps: int = 20,
    queries: int = 500,
    every: int = 10,
    repeats: int = 30,
    seed: int = 0,
    devices: int | None = None,
    sign: str | Path | None = None,
    pictures: bool = True,
    out: str | Path | None = None,
    force: bool = False,
    trust: TrustPolicy = NO_TRUST_POLICY,
) -> "GateResult | None":
    """
    Test whether an engine is as accurate, as robust and as fast as its limits ask, and write its passport into the bundle.

    The engine and the PyTorch model are scored on the worst attacks of a shared pool: made on the PyTorch model, on the
    engine's own graph, and with queries to the engine.

    Parameters
    ----------
    bundle : path
        Directory that `ddcat.export` wrote.
    checkpoint : path, optional
        Where the checkpoint of the bundle is now; where it was at the export by default.
    data_root : path, optional
        Where the data set is now; where it was in training by default.
    split : str, optional
        The split that the manifest names by default.
    limit : int, optional
        Number of images, spread evenly over the split; all by default.
    clips : str, optional
        Regular expression whose first group in a file name is the video clip of the image; what the data set says by default.
    limits : path, optional
        YAML file with other limits than those of the package.
    quick : bool
        Test on clean images and the paper's BIM, n = 3, only.
    steps, queries, every : int
        Steps of each strong gradient attack; queries per image of the attacks that query the engine, which are run on every
        `every`-th image.
    repeats : int
        Timed calls of the engine and of PyTorch.
    seed : int
        Of random starts and searches.
    devices : int, optional
        Processes that share the attacks.
    sign : path, optional
        Private key (PEM) that signs the passport.
    pictures : bool
        Whether the report shows images of the data set.
    out : path, optional
        Folder of the result; BUNDLE-gate beside the bundle by default.
    force : bool
        Replace an earlier result.
    trust : TrustPolicy
        What the bundle must prove before it is opened.

    Returns
    -------
    GateResult or None
        With `verdict` "pass", "refuse" or "inconclusive". None in a process that another one speaks for.

    Raises
    ------
    BenchError, BundleError, DataError, EngineError, TrainError, WriteError
    """
    if under_agent() and not launched():
        raise BenchError("torchrun hides the exit status, which is the gate's verdict: use --devices N without torchrun")
    budget = Budget("quick" if quick else "default", steps=steps, queries=queries, every=every, seed=seed)
    if quick:
        for name, value, usual in zip(budget._fields[1:], budget[1:], Budget()[1:], strict=True):
            if value != usual:
                raise BenchError(f"--{name} {value}: --quick runs BIM, n = 3, only and does not use this option: leave it out")
    opened = open_bundle(Path(bundle), trust)
    allowed = read_limits(Path(limits) if limits else DEFAULT, opened.manifest.engine.effective_precision)
    source = check_source(opened, Path(checkpoint) if checkpoint else None)
    with libraries_for(opened):  # what is wrong with the arguments is said before what is not installed
        from ddcat_bench.gate.case import Case
        from ddcat_bench.gate.command import judge
        from ddcat_bench.subjects import check_sizes, checkpoint_of, open_bundle_data
    loaded = checkpoint_of(opened, source)
    dataset = open_bundle_data(opened, data_root=Path(data_root) if data_root else None, split=split)
    if clips is not None:
        dataset = dataclasses.replace(dataset, clips=clips)
    check_clips(dataset)
    check_sizes(opened, dataset)
    folder = Path(out) if out else beside(Path(bundle), "gate")
    return judge(
        Case(opened, loaded, dataset, limit, budget), allowed, folder, repeats=repeats, devices=devices,
        key=Path(sign) if sign else None, pictures=pictures, force=force,
    )  # fmt: skip
