"""The command `ddcat predict`."""

import signal
import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from ddcat.cli_support import BundleArgument, ExpectDigest, RequirePassport, RequireSignature
from ddcat.errors import DdcatError

__all__ = ["app"]

app = typer.Typer(
    help="Segment files, folders, buckets and videos with a bundle.",
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)


class Format(StrEnum):
    """A form of results: the keys of `ddcat.predict.formats.FORMATS`."""

    PNG = "png"
    COCO = "coco"
    COCO_POLYGONS = "coco-polygons"
    GEOJSON = "geojson"
    LABEL_STUDIO = "label-studio"
    CVAT = "cvat"
    OVERLAY = "overlay"


@app.command()
def predict(
    bundle: BundleArgument,
    inputs: Annotated[
        list[str],
        typer.Argument(metavar="INPUT...", help="Files, folders, patterns, videos, or addresses of s3:// and gs://."),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the results: a new one, or one to resume.")],
    formats: Annotated[
        list[Format] | None,
        typer.Option("--format", help="Format of the results. Repeat it for several.", show_default="png and coco"),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Number of images that the engine computes at once.")] = 1,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Number of threads that compute a batch.", show_default="the physical cores")
    ] = None,
    abstain: Annotated[
        bool,
        typer.Option("--abstain", help="Write 255 for pixels whose confidence is not above the threshold of the bundle."),
    ] = False,
    ray: Annotated[
        bool, typer.Option("--ray", help="Run on a Ray cluster whose machines all see the files and --out.")
    ] = False,
    require_signature: RequireSignature = None,
    expect_digest: ExpectDigest = None,
    require_passport: RequirePassport = False,
) -> None:
    """
    Segment images and videos, and write masks and a summary. No server and no torch is needed.

    After a crash, run it again: it continues where it stopped, and ends with the same bytes. If images of a folder were added
    or changed, it does only those.

    For example:

    - `ddcat predict runs/camvid/bundle scenes --out masks`

    - `ddcat predict runs/camvid/bundle "scenes/*/left.jpg" --out masks --format png --format coco --batch 8`
    """
    from ddcat.bundle import TrustPolicy, open_bundle
    from ddcat.engines import extra_of
    from ddcat.extras import needing
    from ddcat.predict.sources import find_sources

    trust = TrustPolicy.from_options(require_signature, expect_digest, require_passport)
    engine = open_bundle(bundle, trust).manifest.engine.name  # what is wrong with either is said before a library is missing
    sources = find_sources(inputs, warn=lambda line: typer.echo(f"warning: {line}", err=True))
    with needing(extra_of(engine)):
        from ddcat.predict.run import SUMMARY
        from ddcat.predict.run import predict as run
    started = time.monotonic()
    try:
        summary = run(
            bundle, sources, out, formats=[form.value for form in formats or (Format.PNG, Format.COCO)], batch=batch,
            threads=threads, abstain=abstain, on_ray=ray, trust=trust,
        )  # fmt: skip
    except KeyboardInterrupt:
        typer.echo(f"error: interrupted: finished masks are in {out}, and the same command continues", err=True)
        raise typer.Exit(128 + signal.SIGINT) from None
    failed, images = len(summary["failed"]), summary["images"]
    typer.echo(f"{images} image{'s' * (images != 1)} in {out} after {time.monotonic() - started:.1f} s; see {out / SUMMARY}")
    if failed:
        first = summary["failed"][0]
        have = "has" if failed == 1 else "have"
        raise DdcatError(f"{failed} of {images + failed} images {have} no mask, such as {first['name']}: {first['reason']}")
