"""The command `ddcat scenarios`."""

from pathlib import Path
from typing import Annotated

import typer

from ddcat.cli_support import BundleArgument, ExpectDigest, RequireSignature, parse_size
from ddcat_bench.cli_options import DataRoot, Force, ImageSize, out_option

__all__ = ["scenarios"]


def scenarios(
    bundle: BundleArgument,
    data_root: DataRoot = None,
    size: ImageSize = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="Duration of each scenario in seconds.")] = 10.0,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Number of threads of the engine.", show_default="the physical cores")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the arrival times of requests.")] = 0,
    out: Annotated[Path | None, out_option("BUNDLE-scenarios beside the bundle")] = None,
    force: Force = False,
    require_signature: RequireSignature = None,
    expect_digest: ExpectDigest = None,
) -> None:
    """
    Load-test an engine in MLPerf's single-stream, server (Poisson arrivals) and offline scenarios.

    The server scenario runs at 50, 70 and 90 % of the engine's capacity. Each scenario is measured from arrays to labels and
    from JPEG files to PNG masks. A percentile needs enough requests, or it is left out: 64 for p90, 662 for p99.

    For example:

    - `ddcat scenarios runs/scenes-ddcat/bundle`

    - `ddcat scenarios model.bundle --size 473x473 --seconds 120`
    """
    import time

    from ddcat.bundle import TrustPolicy, open_bundle
    from ddcat.engines import open_engine
    from ddcat.progress import progress
    from ddcat_bench.arguments import libraries_for
    from ddcat_bench.publish import claim, publish, sibling_folder

    began, chosen = time.monotonic(), parse_size(size) if size else None
    opened = open_bundle(bundle, TrustPolicy.from_options(require_signature, expect_digest))
    folder = out or sibling_folder(bundle, "scenarios")
    with claim(folder, "scenarios", force=force):
        with libraries_for(opened):
            import torch

            from ddcat_bench.describe import describe_bundle, describe_environment
            from ddcat_bench.inputs import open_bundle_data
            from ddcat_bench.timing.scenarios import (
                BOUNDARIES,
                LOADS,
                ScenariosResult,
                draw_files,
                run_scenarios,
                scenarios_markdown,
            )
            from ddcat_bench.timing.speed import draw_inputs
        there = data_root is not None or Path(opened.manifest.data.root).is_dir()
        dataset = open_bundle_data(opened, data_root=data_root) if there else None
        inputs = draw_inputs(opened, dataset, repeats=10, batch=1, size=chosen)
        files = draw_files(inputs)
        with (
            open_engine(opened, threads=threads) as engine,
            progress("serving", len(BOUNDARIES) * (1 + len(LOADS)) + 1, unit="scenarios") as advance,
        ):
            rows, others, steady = run_scenarios(opened, engine, files, seconds=seconds, seed=seed, advance=advance)
            height, width = inputs.batches[0].shape[1:3]
            result = ScenariosResult(
                bundle=describe_bundle(opened, engine),
                height=height,
                width=width,
                seconds=seconds,
                seed=seed,
                others=others,
                steady=steady,
                rows=rows,
                environment=describe_environment(torch.device("cpu"), time.monotonic() - began),
            )
        publish(folder, "scenarios", result, scenarios_markdown(result), force=force)
