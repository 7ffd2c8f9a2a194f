"""The command `ddcat drift`."""

from pathlib import Path
from typing import Annotated

import typer

from ddcat.cli_support import BundleArgument, ExpectDigest, RequireSignature
from ddcat_bench.cli_options import DataRoot, Force, MovedCheckpoint, Split, out_option

__all__ = ["drift"]


def drift(
    bundle: BundleArgument,
    checkpoint: MovedCheckpoint = None,
    data_root: DataRoot = None,
    split: Split = None,
    epsilon: Annotated[str, typer.Option(metavar="E", help="Bound of both attacks, such as 8/255.")] = "8/255",
    out: Annotated[Path | None, out_option("BUNDLE-drift beside the bundle")] = None,
    force: Force = False,
    require_signature: RequireSignature = None,
    expect_digest: ExpectDigest = None,
) -> None:
    """
    Measure the drift monitor's false-alarm rate and its detection rate, for a standard and an adaptive attack.

    The server's monitor sees streams of answers to the second half of the split, in order and shuffled. It compares them with
    the bundle's clean golden images, as in the server, and with the clean images of the first half. It raises an alarm while
    a population stability index is above 0.25.

    For example:

    - `ddcat drift runs/camvid-ddcat/bundle`

    - `ddcat drift model.bundle --data-root /data/camvid --epsilon 4/255`
    """
    import time

    from ddcat.bundle import TrustPolicy, open_bundle
    from ddcat.engines import open_engine
    from ddcat.progress import progress
    from ddcat_bench.arguments import check_source, libraries_for, parse_epsilon
    from ddcat_bench.publish import claim, publish, sibling_folder

    began, bound = time.monotonic(), parse_epsilon(epsilon)
    opened = open_bundle(bundle, TrustPolicy.from_options(require_signature, expect_digest))
    folder = out or sibling_folder(bundle, "drift")
    with claim(folder, "drift", force=force):
        source = check_source(opened, checkpoint)
        with libraries_for(opened):
            import torch

            from ddcat_bench.describe import describe_bundle, describe_environment
            from ddcat_bench.drift.measure import DriftResult, drift_markdown, measure_drift
            from ddcat_bench.inputs import check_sizes, main_branch, open_bundle_data, reference_of
        loaded = reference_of(opened, source)
        dataset = open_bundle_data(opened, data_root=data_root, split=split)
        check_sizes(opened, dataset)
        cpu = torch.device("cpu")
        with open_engine(opened) as engine, progress("attacking", len(dataset), unit="images") as advance:
            images, scores, rows = measure_drift(
                opened, engine, main_branch(loaded, cpu), dataset, epsilon=bound, advance=advance
            )
            described = describe_bundle(opened, engine)
        result = DriftResult(
            bundle=described,
            method=opened.manifest.source.method,
            data=dataset.name,
            split=dataset.split,
            images=images,
            epsilon=bound,
            miou=scores,
            rows=rows,
            environment=describe_environment(cpu, time.monotonic() - began),
        )
        publish(folder, "drift", result, drift_markdown(result), force=force)
