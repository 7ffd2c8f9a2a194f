"""The command `ddcat gate`."""

from pathlib import Path
from typing import Annotated

import typer

from ddcat.cli_support import BundleArgument, ExpectDigest, RequireSignature
from ddcat_bench.cli_options import DataRoot, Force, MaxImages, MovedCheckpoint, Split, out_option

__all__ = ["gate"]

_STATUS = {"pass": 0, "refuse": 1, "inconclusive": 3}  # 2 is that of a command that could not run


def gate(
    bundle: BundleArgument,
    checkpoint: MovedCheckpoint = None,
    data_root: DataRoot = None,
    split: Split = None,
    max_images: MaxImages = None,
    clips: Annotated[
        str | None,
        typer.Option(
            metavar="REGEX",
            help="Regular expression whose first group in a file name (or whole match) is the video clip of the image. "
            "Use '(.+)' if every image stands alone.",
            show_default="what the data set says",
        ),
    ] = None,
    thresholds: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="YAML file with the limits that the engine must keep.", show_default="those of the package"
        ),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Test on clean images and the paper's BIM, n = 3, only.")] = False,
    steps: Annotated[int, typer.Option(min=1, help="Number of steps of each strong gradient attack.")] = 20,
    queries: Annotated[
        int, typer.Option(min=10, help="Number of queries per image of the attacks that query the engine.")
    ] = 500,
    query_stride: Annotated[int, typer.Option(min=1, help="Run the attacks that query the engine on every Nth image.")] = 10,
    repeats: Annotated[int, typer.Option(min=10, help="Number of timed calls of the engine and of PyTorch.")] = 30,
    seed: Annotated[int, typer.Option(min=0, help="Seed of random starts and of searches.")] = 0,
    jobs: Annotated[
        int | None, typer.Option(help="Number of processes that share the attacks. Not under torchrun.", show_default="1")
    ] = None,
    sign: Annotated[Path | None, typer.Option(metavar="KEY", help="Sign the passport with this private key (PEM).")] = None,
    pictures: Annotated[
        bool, typer.Option("--pictures/--no-pictures", help="Show images of the data set in the report.")
    ] = True,
    out: Annotated[Path | None, out_option("BUNDLE-gate beside the bundle")] = None,
    force: Force = False,
    require_signature: RequireSignature = None,
    expect_digest: ExpectDigest = None,
) -> None:
    """
    Test whether an engine is as accurate, as robust and as fast as its limits require, and write its passport.

    The exit status is 0 for pass, 1 for refuse, 3 for inconclusive, and 2 if the gate could not run. The engine and the PyTorch
    main branch are scored on the worst attacks of a shared pool: made on the PyTorch model, on the engine's own graph, and with
    queries to the engine. After an interruption the same command continues.

    For example:

    - `ddcat gate runs/camvid-ddcat/bundle-ort-fp32`

    - `ddcat gate model.bundle --thresholds ours.yaml --sign key.pem --data-root /data/camvid`

    - `ddcat gate model.bundle --quick --force`

    - `ddcat gate model.bundle --clips '(.+)_[0-9]+'` for frames such as drive3_000123

    - `ddcat gate model.bundle --jobs 8`
    """
    from ddcat.bundle import TrustPolicy
    from ddcat_bench.gate.run import gate as run_gate

    result = run_gate(
        bundle, checkpoint=checkpoint, data_root=data_root, split=split, max_images=max_images, clips=clips,
        thresholds=thresholds, quick=quick, steps=steps, queries=queries, query_stride=query_stride, repeats=repeats, seed=seed,
        jobs=jobs, sign=sign, pictures=pictures, out=out, force=force,
        trust=TrustPolicy.from_options(require_signature, expect_digest),
    )  # fmt: skip
    if result is not None:
        raise typer.Exit(_STATUS[result.verdict])
