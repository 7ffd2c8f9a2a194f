"""The command ddcat speed."""

from pathlib import Path
from typing import Annotated

import typer

from ddcat.cli_support import BundleArgument, ExpectDigest, RequireSignature, parse_size
from ddcat_bench.cli_options import DataRoot, Force, ImageSize, MovedCheckpoint, out_option

__all__ = ["speed"]


def speed(
    bundle: BundleArgument,
    checkpoint: MovedCheckpoint = None,
    data_root: DataRoot = None,
    repeats: Annotated[int, typer.Option(help="Number of timed calls of each contender; 10 or more.")] = 30,
    size: ImageSize = None,
    batch: Annotated[int, typer.Option(min=1, help="Number of images in a call.")] = 1,
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="Number of threads of the engine and of PyTorch.", show_default="the physical cores"),
    ] = None,
    compiled: Annotated[bool, typer.Option("--compiled", help="Also time torch.compile of the main branch.")] = False,
    out: Annotated[Path | None, out_option("BUNDLE-speed beside the bundle")] = None,
    force: Force = False,
    require_signature: RequireSignature = None,
    expect_digest: ExpectDigest = None,
) -> None:
    """
    Time an engine and eager PyTorch in turns: same process, images and threads; from uint8 images to uint8 labels.

    PyTorch computes the original graph and our main branch. The peak memory of each is measured in a process of its own.

    The images come from the bundle's data set, or are noise if the data set is missing; the result records which.

    For example:

    - `ddcat speed runs/scenes-ddcat/bundle`

    - `ddcat speed model.bundle --size 473x473 --repeats 100 --threads 4`
    """
    from ddcat.bundle import TrustPolicy, open_bundle
    from ddcat.engines import open_engine
    from ddcat.engines.cores import physical_cores
    from ddcat.progress import progress
    from ddcat_bench.arguments import check_source, libraries_for
    from ddcat_bench.publish import claim, publish, sibling_folder

    chosen = parse_size(size) if size else None
    opened = open_bundle(bundle, TrustPolicy.from_options(require_signature, expect_digest))
    folder = out or sibling_folder(bundle, "speed")
    with claim(folder, "speed", force=force):
        source = check_source(opened, checkpoint)
        with libraries_for(opened):
            from ddcat_bench.inputs import open_bundle_data, reference_of
            from ddcat_bench.timing.serving_memory import serving_peak
            from ddcat_bench.timing.speed import draw_inputs, measure, speed_markdown
        loaded = reference_of(opened, source)
        there = data_root is not None or Path(opened.manifest.data.root).is_dir()
        dataset = open_bundle_data(opened, data_root=data_root) if there else None
        inputs = draw_inputs(opened, dataset, repeats=repeats, batch=batch, size=chosen)
        used = threads or physical_cores()
        with (
            open_engine(opened, threads=used) as engine,
            progress("timing", (3 + compiled) * len(inputs.batches), unit="calls") as advance,
        ):
            result = measure(
                opened, engine, loaded, inputs, threads=used, peak=serving_peak, compiled=compiled, advance=advance
            )
        publish(folder, "speed", result, speed_markdown(result), force=force)
