"""The command ddcat fidelity."""

from pathlib import Path
from typing import Annotated

from ddcat.cli_support import BundleArgument, ExpectDigest, RequireSignature
from ddcat_bench.cli_options import DataRoot, Force, MaxImages, MovedCheckpoint, Split, out_option

__all__ = ["fidelity"]


def fidelity(
    bundle: BundleArgument,
    checkpoint: MovedCheckpoint = None,
    data_root: DataRoot = None,
    split: Split = None,
    max_images: MaxImages = None,
    out: Annotated[Path | None, out_option("BUNDLE-fidelity beside the bundle")] = None,
    force: Force = False,
    require_signature: RequireSignature = None,
    expect_digest: ExpectDigest = None,
) -> None:
    """
    Compare an engine's labels with those of the PyTorch main branch, on clean and on attacked 8-bit images.

    It is a comparison, not a gate: the exit status is 0 for any result, and 2 if there is none.

    For example:

    - `ddcat fidelity runs/scenes-ddcat/bundle`

    - `ddcat fidelity model.bundle --checkpoint runs/old --data-root /data/camvid --max-images 50`
    """
    from ddcat.bundle import TrustPolicy, open_bundle
    from ddcat.engines import open_engine
    from ddcat.progress import progress
    from ddcat_bench.arguments import check_source, libraries_for
    from ddcat_bench.publish import claim, publish, sibling_folder

    opened = open_bundle(bundle, TrustPolicy.from_options(require_signature, expect_digest))
    folder = out or sibling_folder(bundle, "fidelity")
    with claim(folder, "fidelity", force=force):
        source = check_source(opened, checkpoint)
        with libraries_for(opened):
            from ddcat_bench.fidelity.compare import compare as compare_labels
            from ddcat_bench.fidelity.compare import fidelity_markdown
            from ddcat_bench.inputs import check_sizes, open_bundle_data, reference_of
        loaded = reference_of(opened, source)
        dataset = open_bundle_data(opened, data_root=data_root, split=split)
        check_sizes(opened, dataset)
        with (
            open_engine(opened) as engine,
            progress("comparing", min(max_images or len(dataset), len(dataset))) as advance,
        ):
            result = compare_labels(opened, engine, loaded, dataset, max_images=max_images, advance=advance)
        publish(folder, "fidelity", result, fidelity_markdown(result), force=force)
