"""The command ddcat-serve."""

from pathlib import Path
from typing import Annotated

import typer

from ddcat import command
from ddcat.command import ExpectDigest, RequireSignature

__all__ = ["app", "main"]

app = typer.Typer(
    help="Serve the bundles that ddcat-export writes.", no_args_is_help=True, add_completion=False, rich_markup_mode="markdown"
)


@app.command()
def run(
    bundles: Annotated[list[Path], typer.Argument(metavar="BUNDLE", help="Bundles to serve, each under its own name.")],
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 for every one of this machine.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen at; 0 takes a free one.")] = 8000,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads that compute one batch.", show_default="the physical cores")
    ] = None,
    require_signature: RequireSignature = None,
    expect_digest: ExpectDigest = None,
) -> None:
    """
    Verify bundles and serve them over HTTP until SIGTERM or Ctrl-C.

    POST /v1/segment takes a JPEG or PNG and answers with a palette PNG; /v2/... is the Open Inference Protocol.
    The environment variables DDCAT_SERVE_MAX_BYTES and DDCAT_SERVE_MAX_PIXELS change what a request may hold.

    For example:

    - `ddcat-serve run runs/camvid/bundle`

    - `ddcat-serve run one.bundle two.bundle --host 0.0.0.0 --port 80 --threads 4`

    - `ddcat-serve run one.bundle --require-signature key.pub`
    """
    from ddcat.bundle import Trust
    from ddcat_serve.server import serve

    trust = Trust(require_signature, tuple(expect_digest or ()))
    serve(bundles, host=host, port=port, threads=threads, trust=trust)


@app.command()
def inspect(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Directory that ddcat-export wrote.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON: digest, trust, and the manifest as it is.")] = False,
    require_signature: RequireSignature = None,
    expect_digest: ExpectDigest = None,
) -> None:
    """
    Verify a bundle and say what is in it.

    For example:

    - `ddcat-serve inspect runs/camvid/bundle`

    - `ddcat-serve inspect runs/camvid/bundle --require-signature key.pub --json`
    """
    from ddcat.bundle import Trust, open_bundle
    from ddcat_serve.inspection import print_bundle, print_json

    opened = open_bundle(bundle, Trust(require_signature, tuple(expect_digest or ())))
    (print_json if as_json else print_bundle)(opened)


def main() -> None:
    """Run the command."""
    command.run(app)
