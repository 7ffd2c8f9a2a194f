"""The command `ddcat-bench gate`."""

from pathlib import Path
from typing import Annotated

import typer

from ddcat.command import ExpectDigest, RequireSignature
from ddcat_bench.errors import BenchError
from ddcat_bench.options import DataRoot, Limit, MovedCheckpoint, Split

__all__ = ["gate"]

_STATUS = {"pass": 0, "refuse": 2, "inconclusive": 3}


def gate(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Directory that ddcat-export wrote.")],
    checkpoint: MovedCheckpoint = None,
    data_root: DataRoot = None,
    split: Split = None,
    limit: Limit = None,
    limits: Annotated[
        Path | None, typer.Option(metavar="FILE", help="YAML with other limits.", show_default="those of the package")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Only clean images and the paper's BIM, n = 3.")] = False,
    steps: Annotated[int, typer.Option(min=1, help="Of each strong gradient attack.")] = 20,
    queries: Annotated[int, typer.Option(min=10, help="Of the attack that asks the engine, for each image.")] = 500,
    every: Annotated[int, typer.Option(min=1, help="Every how many images the engine is asked about.")] = 10,
    repeats: Annotated[int, typer.Option(min=10, help="Timed calls of each contender.")] = 30,
    seed: Annotated[int, typer.Option(min=0, help="Of random starts and searches.")] = 0,
    devices: Annotated[
        int | None, typer.Option(help="Processes that share the attacks; 1 by default. Not under torchrun.")
    ] = None,
    sign: Annotated[Path | None, typer.Option(metavar="KEY", help="Sign the passport with this private key (PEM).")] = None,
    pictures: Annotated[
        bool, typer.Option("--pictures/--no-pictures", help="Show images of the data set in the page, where they may be shown.")
    ] = True,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="A new folder.", show_default="BUNDLE-gate beside the bundle")
    ] = None,
    require_signature: RequireSignature = None,
    expect_digest: ExpectDigest = None,
) -> None:
    """
    Judge whether an engine is as accurate, as robust and as fast as its limits ask, and write its passport.

    The exit status is 0 for pass, 2 for refuse (or bad input), 3 for inconclusive. Both the engine and the PyTorch main branch
    meet the worst attacks of a shared pool: made on either, on the engine's own graph, and by asking the engine. What is
    stopped continues with the same command.

    For example:

    - `ddcat-bench gate runs/camvid-ddcat/bundle-ort-fp32`

    - `ddcat-bench gate model.bundle --limits ours.yaml --sign key.pem --data-root /data/camvid`

    - `ddcat-bench gate model.bundle --quick`

    - `ddcat-bench gate model.bundle --devices 8`
    """
    from ddcat.bundle import Trust, open_bundle
    from ddcat_bench.gate.case import Budget, Case
    from ddcat_bench.gate.command import judge
    from ddcat_bench.gate.limits import DEFAULT, read_limits
    from ddcat_bench.output import beside
    from ddcat_bench.subjects import check_sizes, checkpoint_of, open_bundle_data

    budget = Budget("quick" if quick else "default", steps=steps, queries=queries, every=every, seed=seed)
    if quick:
        for name, value, usual in zip(budget._fields[1:], budget[1:], Budget()[1:], strict=True):
            if value != usual:
                raise BenchError(f"--{name} {value}: --quick makes BIM, n = 3, from clean images alone, and has no use for it")
    opened = open_bundle(bundle, Trust.from_options(require_signature, expect_digest))
    allowed = read_limits(limits or DEFAULT, opened.manifest.engine.effective_precision)
    loaded = checkpoint_of(opened, checkpoint)
    dataset = open_bundle_data(opened, data_root=data_root, split=split)
    check_sizes(opened, dataset)
    case = Case(opened, loaded, dataset, limit, budget)
    verdict = judge(case, allowed, out or beside(bundle, "gate"), repeats=repeats, devices=devices, key=sign, pictures=pictures)
    if verdict is not None:
        raise typer.Exit(_STATUS[verdict])
