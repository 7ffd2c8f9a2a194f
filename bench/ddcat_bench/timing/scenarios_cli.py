"""The command `ddcat scenarios`."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ddcat.cli_support import BundleArgument, ExpectDigest, RequireSignature, parse_size
from ddcat_bench.cli_options import DataRoot, Force, ImageSize, out_option
from ddcat_bench.errors import BenchError

if TYPE_CHECKING:
    from ddcat.bundle import Bundle
    from ddcat.engines import Engine
    from ddcat_bench.timing.tuning import TuningResult

__all__ = ["scenarios"]


def scenarios(
    bundle: BundleArgument,
    data_root: DataRoot = None,
    size: ImageSize = None,
    p99: Annotated[
        str | None,
        typer.Option(
            metavar="DURATION",
            help="Find threads, replicas and batch with which 99 of 100 requests are answered within this time, such as 200ms "
            "or 1.5s, at the highest rate. Writes serve.yaml for ddcat serve --config.",
        ),
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="Duration of each scenario in seconds.")] = 10.0,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Number of threads of the engine.", show_default="the physical cores")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the arrival times of requests.")] = 0,
    out: Annotated[Path | None, out_option("BUNDLE-scenarios beside the bundle; with --p99, BUNDLE-tuning")] = None,
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

    - `ddcat scenarios model.bundle --p99 200ms --out tuned && ddcat serve model.bundle --config tuned/serve.yaml`
    """
    import time

    from ddcat.bundle import TrustPolicy, open_bundle
    from ddcat.engines import open_engine
    from ddcat.progress import progress
    from ddcat_bench.arguments import libraries_for
    from ddcat_bench.publish import claim, publish, sibling_folder

    began, chosen = time.monotonic(), parse_size(size) if size else None
    limit = None if p99 is None else _parse_duration(p99)
    name = "scenarios" if limit is None else "tuning"
    opened = open_bundle(bundle, TrustPolicy.from_options(require_signature, expect_digest))
    folder = out or sibling_folder(bundle, name)
    with claim(folder, name, force=force):
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
        if limit is not None:
            result, markdown, settings = _tune(
                opened, files, inputs.batches[0].shape[1:3], limit=limit, threads=threads, seconds=seconds, seed=seed
            )
            publish(folder, name, result, markdown, {"serve.yaml": settings.encode()}, force=force)
            return
        with (
            open_engine(opened, threads=threads) as engine,
            progress("serving", len(BOUNDARIES) * (1 + len(LOADS)) + 1, unit="scenarios") as advance,
        ):
            rows, others, steady = run_scenarios(opened, engine, files, seconds=seconds, seed=seed, advance=advance)
            height, width = inputs.batches[0].shape[1:3]
            found = ScenariosResult(
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
        publish(folder, name, found, scenarios_markdown(found), force=force)


def _parse_duration(text: str) -> float:
    """Read seconds from a text such as 200ms or 1.5s."""
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?(ms|s)", text.strip())
    if found is None or not float(found[1]):
        raise BenchError(f"--p99 {text}: use a time such as 200ms or 1.5s")
    return float(found[1]) / (1000 if found[2] == "ms" else 1)


def _tune(
    bundle: "Bundle",
    files: Sequence[bytes],
    size: tuple[int, int],
    *,
    limit: float,
    threads: int | None,
    seconds: float,
    seed: int,
) -> tuple["TuningResult", str, str]:
    """Find the best setting; return the result, its page, and the settings for the server."""
    import time

    import torch

    from ddcat.engines import open_engine
    from ddcat.engines.cores import physical_cores
    from ddcat.progress import progress
    from ddcat_bench.describe import describe_bundle, describe_environment
    from ddcat_bench.timing import tuning
    from ddcat_bench.timing.cpu_contention import watch_contention

    began, watch = time.monotonic(), watch_contention()
    batches = [batch for batch in tuning.BATCHES if batch in bundle.manifest.shapes.batch]
    if batches[:1] != [1]:
        raise BenchError(f"{bundle.path} does not take single images: export it without a fixed batch")
    cores = physical_cores()
    divided = tuning.divisions(cores) if threads is None else [(threads, max(1, cores // threads))]
    classes = bundle.manifest.class_table()

    def open_replica(count: int) -> "Engine":
        return open_engine(bundle, threads=count)

    with progress("timing", len(divided), unit="settings") as advance:
        candidates = tuning.measure_candidates(
            open_replica,
            files,
            classes,
            divided=divided,
            batches=batches,
            limit=limit,
            seconds=seconds / len(batches),
            seed=seed,
            advance=advance,
        )
    with progress("confirming", tuning.TRIALS, unit="loads") as advance:
        chosen = tuning.confirm(
            candidates, open_replica, files, classes, size=size, limit=limit, seconds=seconds, seed=seed, advance=advance
        )
    with open_engine(bundle, threads=chosen.threads) as engine:
        described = describe_bundle(bundle, engine)
    height, width = size
    result = tuning.TuningResult(
        bundle=described,
        height=height,
        width=width,
        limit=limit,
        seed=seed,
        others=watch(),
        candidates=tuple(candidates),
        chosen=chosen,
        environment=describe_environment(torch.device("cpu"), time.monotonic() - began),
    )
    return result, tuning.tuning_markdown(result), tuning.settings_yaml(result)
