"""Commands for serving: `ddcat serve`, `inspect`, `triton` and `ray`."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from inspect import Parameter, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic.fields import FieldInfo

from ddcat.cli_support import BundleArgument, ExpectDigest, RequirePassport, RequireSignature
from ddcat_serve.errors import ServeError
from ddcat_serve.inference.sources import parse_source
from ddcat_serve.settings import PREFIX, Settings, read_settings

if TYPE_CHECKING:
    from ddcat.bundle import TrustPolicy
    from ddcat.passport import PassportStatus

__all__ = ["app"]

app = typer.Typer(
    help="Serve the bundles that ddcat export writes.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)


def _with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Add an option for each setting to a command that takes `**settings`. It overrides the environment; None: not given."""
    described = signature(command)
    own = [p for p in described.parameters.values() if p.kind is not Parameter.VAR_KEYWORD]
    options = [_option(name, field) for name, field in Settings.model_fields.items()]
    command.__signature__ = described.replace(parameters=[*own, *options])  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in (*own, *options)} | {"return": None}
    return command


def _option(name: str, field: FieldInfo) -> Parameter:
    flag = f"--{name.replace('_', '-')}"
    switch = field.annotation is bool
    option = typer.Option(
        f"{flag}/--no-{flag[2:]}" if switch else flag,
        help=f"{field.description} ({PREFIX}{name.upper()})",
        show_default=_shown(field.default),
        metavar=None if switch else "VALUE",
        rich_help_panel="Settings",
    )
    kind: Any = bool | None if switch else str | None
    return Parameter(name, Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind, option])


def _shown(default: object) -> str:
    if default is None or default == ():
        return "none"
    return str(default).lower() if isinstance(default, bool) else str(default)


@app.command()
@_with_settings
def run(
    bundles: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[[NAME=]BUNDLE...]",
            help="Bundles to serve; bundles with the same name become its versions 1, 2, ... None with --repository.",
            show_default=False,
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all addresses of this machine.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 8000,
    config: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="YAML file with settings. Options and environment variables override it."),
    ] = None,
    require_signature: RequireSignature = None,
    expect_digest: ExpectDigest = None,
    require_passport: RequirePassport = False,
    **settings: Any,
) -> None:
    """
    Verify bundles and serve them over HTTP until SIGTERM or Ctrl-C.

    POST /v1/segment takes a JPEG, PNG or WebP file and returns a mask; /v2/... is the Open Inference Protocol; /metrics is for
    Prometheus. Each setting is also an environment variable, shown in parentheses, and a key of the YAML file.

    For example:

    - `ddcat serve runs/camvid/bundle`

    - `ddcat serve fp32=one.bundle int8=two.bundle --host 0.0.0.0 --port 80 --threads 4`

    - `ddcat serve one.bundle --require-signature key.pub --require-passport --rate-limit 100/minute`

    - `ddcat serve --repository models --watch` swaps to models/camvid/2 as soon as that is there and has passed all checks.
    """
    from ddcat.bundle import TrustPolicy

    sources, read = [parse_source(text) for text in bundles or ()], read_settings(config, **settings)
    trust = TrustPolicy.from_options(require_signature, expect_digest, require_passport)
    stored = () if read.repository is None else sorted(read.repository.glob("*/[1-9]*/"))
    with _libraries_for([*(source.path for source in sources), *stored], trust, "serve"):
        from ddcat_serve.server import serve
    serve(sources, host=host, port=port, threads=read.threads, trust=trust, settings=read)


@app.command()
def inspect(
    bundle: BundleArgument,
    as_json: Annotated[bool, typer.Option("--json", help="Print digest, trust and manifest as JSON.")] = False,
    replay: Annotated[
        bool, typer.Option("--replay", help="Run the engine, and compare its labels of the golden images with the bundle's.")
    ] = False,
    require_signature: RequireSignature = None,
    expect_digest: ExpectDigest = None,
) -> None:
    """
    Verify a bundle and show its contents.

    For example:

    - `ddcat inspect runs/camvid/bundle`

    - `ddcat inspect runs/camvid/bundle --require-signature key.pub --json`

    - `ddcat inspect bundles/plan --replay` on the GPU that a plan of trt-rtx was built for elsewhere.
    """
    from ddcat.bundle import TrustPolicy, open_bundle
    from ddcat.manifest import GOLDEN_TOLERANCE
    from ddcat_serve.inspection import print_bundle, print_json

    trust = TrustPolicy.from_options(require_signature, expect_digest)
    opened = open_bundle(bundle, trust)
    if as_json:
        print_json(opened)
    else:
        print_bundle(opened, trust)
    if replay:
        with _libraries_for([bundle], trust, "serve"):
            from ddcat.engines import golden, open_engine
        with open_engine(opened) as engine:
            found = golden.check_answers(opened, engine, golden.read_golden(opened), tolerance=GOLDEN_TOLERANCE)
        typer.echo(
            "there are no golden images" if found is None else f"{found.differing} of {found.pixels} golden labels differ"
        )


@app.command()
def triton(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Directory that ddcat export wrote, for ort or trt.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A new folder: the model repository.")],
    require_signature: RequireSignature = None,
    expect_digest: ExpectDigest = None,
    require_passport: RequirePassport = False,
) -> None:
    """
    Write a model repository for NVIDIA Triton.

    Triton serves the engine's own file, in batches, and an ensemble from image files to masks. Its Python parts import
    ddcat_serve, which must be installed beside Triton. A tritonserver started with its own option
    `--model-config-name=python` computes with ddcat's engine instead.

    For example:

    - `ddcat triton runs/camvid/bundle repository && tritonserver --model-repository=repository`
    """
    from ddcat.atomic_files import check_absent
    from ddcat.bundle import TrustPolicy, open_bundle
    from ddcat.passport import read_passport

    check_absent(out)
    trust = TrustPolicy.from_options(require_signature, expect_digest, require_passport)
    opened = open_bundle(bundle, trust)
    _warn(bundle, read_passport(opened, trust))
    with _libraries_for([bundle], trust, "serve"):
        from ddcat_serve.deploy.triton import write_repository
    for file in write_repository(opened, out):
        typer.echo(file)
    typer.echo(f"tritonserver --model-repository={out} serves {opened.manifest.name} and {opened.manifest.name}-file")


@app.command(name="ray")
def run_on_ray(
    bundles: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[[NAME=]BUNDLE...]",
            help=f"Bundles, on a file system that all nodes share. None with {PREFIX}REPOSITORY.",
            show_default=False,
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8000,
    replicas: Annotated[int, typer.Option(min=1, help="Minimum number of replicas.")] = 1,
    max_replicas: Annotated[
        int | None, typer.Option(min=1, help="Maximum number of replicas.", show_default="as many as --replicas")
    ] = None,
    threads: Annotated[
        int,
        typer.Option(
            min=1, help="Threads of each replica's engines, which is also the number of CPUs that Ray reserves for it."
        ),
    ] = 1,
    gpus: Annotated[float, typer.Option(min=0, help="Number of GPUs that Ray reserves for each replica.")] = 0,
    require_signature: RequireSignature = None,
    expect_digest: ExpectDigest = None,
    require_passport: RequirePassport = False,
) -> None:
    """
    Serve on Ray: the same routes and masks, from replicas on one or many machines, scaled with their load.

    Settings are environment variables of the replicas: see `ddcat serve --help`. On a cluster, `serve run` or a Serve
    configuration takes the same application: ddcat_serve.deploy.ray_app:application.

    For example:

    - `ddcat ray runs/camvid/bundle --replicas 2 --max-replicas 8`
    """
    from ddcat.bundle import TrustPolicy, open_bundle
    from ddcat.passport import read_passport

    if max_replicas is not None and max_replicas < replicas:  # said before a library is missed
        raise ServeError(f"--max-replicas {max_replicas} is less than --replicas {replicas}")
    trust = TrustPolicy.from_options(require_signature, expect_digest, require_passport)
    with _libraries_for([parse_source(text).path for text in bundles or ()], trust, "serve,ray"):
        from ddcat_serve.deploy.ray_app import Arguments
        from ddcat_serve.deploy.ray_app import run as run_ray
    arguments = Arguments(
        bundles=",".join(bundles or ()),
        replicas=replicas,
        max_replicas=max_replicas,
        threads=threads,
        gpus=gpus,
        require_signature=require_signature,
        expect_digest=",".join(expect_digest or ()),
        require_passport=require_passport,
    )
    for text in bundles or ():  # report their faults here instead of in a replica
        path = parse_source(text).path
        _warn(path, read_passport(open_bundle(path, arguments.trust), arguments.trust))
    run_ray(arguments, host=host, port=port)


@contextmanager
def _libraries_for(bundles: Sequence[Path], trust: "TrustPolicy", extras: str) -> Iterator[None]:
    """If a library is missing, name the extras to install, including those of the bundles' engines."""
    try:
        yield
    except ImportError:
        from ddcat.bundle import open_bundle
        from ddcat.engines import extra_of
        from ddcat.extras import needing

        runtimes = dict.fromkeys(extra_of(open_bundle(bundle, trust).manifest.engine.name) for bundle in bundles)
        with needing(",".join([extras, *runtimes])):
            raise


def _warn(bundle: Path, passport: "PassportStatus") -> None:
    if passport.warning is not None:
        typer.echo(f"warning: {bundle}: {passport.warning}", err=True)
