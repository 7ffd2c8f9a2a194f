"""The command `ddcat-export`."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from ddcat import command
from ddcat.command import parse_size
from ddcat_export.errors import ExportError

__all__ = ["app", "main"]

app = typer.Typer(add_completion=False, rich_markup_mode="markdown", pretty_exceptions_enable=False)

EPILOG = """
**Examples**

`ddcat-export runs/camvid-ddcat --engine ort` takes the run's best checkpoint and images of any size from 33x33 on.

`ddcat-export runs/camvid-ddcat/last.safetensors --engine ort --size 180x240 --logits --out bundles/camvid`
"""


@app.command(epilog=EPILOG)
def export(
    checkpoint: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="A checkpoint file, or a run directory.")],
    engine: Annotated[str, typer.Option(help="Runtime to build for; this version builds ort (ONNX Runtime).")],
    precision: Annotated[str, typer.Option(help="This version builds fp32.")] = "fp32",
    size: Annotated[str, typer.Option(metavar="HxW|dynamic", help="Height and width of the images, or any.")] = "dynamic",
    logits: Annotated[bool, typer.Option("--logits", help="Give the logits, at low resolution, beside the labels.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="BUNDLE", help="Directory to write.", show_default="bundle-ENGINE-PRECISION beside the checkpoint"
        ),
    ] = None,
) -> None:
    """
    Export the main branch of a trained network into a bundle, proven to be that network.

    The graph takes uint8 RGB images (N, H, W, 3) and gives uint8 labels (N, H, W); normalisation and argmax are inside. It is
    written only if it has the opset and types that were asked for, if its bytes are the same with NaN in all other heads, and
    if ONNX Runtime computes with it what PyTorch computes, on images of many shapes.
    """
    sides = None if size == "dynamic" else parse_size(size, otherwise=" or dynamic")
    folder = out or (checkpoint if checkpoint.is_dir() else checkpoint.parent) / f"bundle-{engine}-{precision}"
    try:
        from ddcat_export import exporting
    except ImportError as cause:
        raise ExportError(f'a library is not installed ({cause}): pip install "ddcat[train,export,cpu]"') from cause

    with _status() as progress:
        done = exporting.export(
            checkpoint, folder, engine=engine, precision=precision, size=sides, logits=logits, progress=progress
        )
    manifest, sweep = done.manifest, done.sweep
    spare = manifest.main_branch_only.spare_parameters
    shapes = ", ".join("x".join(map(str, shape)) for shape in sweep.shapes)
    typer.echo(
        f"{folder}: {manifest.name}, {manifest.source.architecture}, {manifest.source.method}\n"
        f"opset {manifest.opset}, {', '.join(f'{t.name} {t.dtype}' for t in (*manifest.inputs, *manifest.outputs))}\n"
        f"main branch only: the bytes are the same with NaN in the {spare} spare parameters\n"
        f"equal to PyTorch on shapes {shapes}: worst logit error {sweep.logit_error:.1e} of their standard deviation, "
        f"{sweep.near_ties} of {sweep.pixels} labels differ (near ties)\n"
        f"digest {done.digest}\n"
        f"next: ddcat-bench fidelity {folder}\n"
        f"      ddcat-serve run {folder}"
    )


@contextmanager
def _status() -> Iterator[Callable[[str], None]]:
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda stage: None
        return
    with console.status("") as status:
        yield lambda stage: status.update(f"{stage} ...")


def main() -> None:
    """Run the command."""
    command.run(app)
