"""The command ddcat-bench."""

from pathlib import Path
from typing import Annotated

import typer

from ddcat import command
from ddcat.command import parse_size
from ddcat_bench.errors import BenchError

__all__ = ["app", "main"]

app = typer.Typer(
    help="Judge checkpoints and the engines made from them. Every result is also a JSON file.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)

DataRoot = Annotated[Path | None, typer.Option(help="Where the data set lies now, if it has moved since training.")]
Split = Annotated[str | None, typer.Option(help="Judge on this split.", show_default="the validation split of training")]
Limit = Annotated[int | None, typer.Option(min=1, help="Judge that many images, spread evenly over the split.")]
MovedCheckpoint = Annotated[Path | None, typer.Option(help="Where the bundle's checkpoint lies now, if it has moved.")]


@app.command()
def attack(
    checkpoint: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="A checkpoint, or a run directory: its best one.")],
    suite: Annotated[str, typer.Option(help="quick: BIM n = 1..7; paper: also PGD-20 with a random start.")] = "quick",
    data_root: DataRoot = None,
    split: Split = None,
    limit: Limit = None,
    batch: Annotated[int, typer.Option(min=1, help="Images that are attacked at once.")] = 8,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="A new folder.", show_default="attack-SUITE beside the checkpoint")
    ] = None,
) -> None:
    """
    Attack a checkpoint's main branch and score what is left, in floats and on 8-bit images.

    For example:

    - `ddcat-bench attack runs/scenes-ddcat`

    - `ddcat-bench attack runs/camvid-sat --suite paper --data-root /data/camvid --out results/sat`
    """
    from ddcat.files import check_vacant
    from ddcat.progress import progress
    from ddcat_bench.attack import SUITES, run_suite
    from ddcat_bench.output import publish
    from ddcat_bench.plots import curves
    from ddcat_bench.subjects import open_split, torch_device
    from ddcat_bench.tables import attack_markdown
    from ddcat_train.checkpoints import load_checkpoint

    name = next((known for known in SUITES if known == suite), None)
    if name is None:
        raise BenchError(f"--suite {suite}: {' or '.join(SUITES)} would be right")
    loaded = load_checkpoint(checkpoint)
    folder = out or loaded.path.parent / f"attack-{name}"
    check_vacant(folder)
    dataset = open_split(loaded, data_root=data_root, split=split)
    with progress("attacking", min(limit or len(dataset), len(dataset))) as advance:
        result = run_suite(
            loaded,
            dataset,
            suite=name,
            batch_size=batch,
            limit=limit,
            device=torch_device(device),
            advance=advance,
        )
    publish(folder, "attack", result, attack_markdown(result), {"attack.png": curves([result])})


@app.command()
def fidelity(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Directory that ddcat-export wrote.")],
    checkpoint: MovedCheckpoint = None,
    data_root: DataRoot = None,
    split: Split = None,
    limit: Limit = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="A new folder.", show_default="BUNDLE-fidelity beside the bundle")
    ] = None,
) -> None:
    """
    Compare an engine's labels with those of the PyTorch main branch, on clean and on attacked 8-bit images.

    It is a comparison, not a gate: the exit status is 0 whatever the figures, 2 where they cannot be had.

    For example:

    - `ddcat-bench fidelity runs/scenes-ddcat/bundle`

    - `ddcat-bench fidelity model.bundle --checkpoint runs/old --data-root /data/camvid --limit 50`
    """
    from ddcat.bundle import open_bundle
    from ddcat.files import check_vacant
    from ddcat.progress import progress
    from ddcat_bench.fidelity import compare
    from ddcat_bench.output import beside, publish
    from ddcat_bench.subjects import checkpoint_of, open_bundle_data
    from ddcat_bench.tables import fidelity_markdown
    from ddcat_serve.engines import open_engine

    opened = open_bundle(bundle)
    folder = out or beside(bundle, "fidelity")
    check_vacant(folder)
    loaded = checkpoint_of(opened, checkpoint)
    dataset = open_bundle_data(opened, data_root=data_root, split=split)
    with (
        open_engine(opened) as engine,
        progress("comparing", min(limit or len(dataset), len(dataset))) as advance,
    ):
        result = compare(opened, engine, loaded, dataset, limit=limit, advance=advance)
    publish(folder, "fidelity", result, fidelity_markdown(result))


@app.command()
def speed(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Directory that ddcat-export wrote.")],
    checkpoint: MovedCheckpoint = None,
    data_root: DataRoot = None,
    repeats: Annotated[int, typer.Option(help="Timed calls of either contender; 10 or more.")] = 30,
    size: Annotated[
        str | None, typer.Option(metavar="HEIGHTxWIDTH", help="Of the images.", show_default="the engine's, or the data's")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Images in a call.")] = 1,
    threads: Annotated[int | None, typer.Option(min=1, help="Of either contender.", show_default="the physical cores")] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="A new folder.", show_default="BUNDLE-speed beside the bundle")
    ] = None,
) -> None:
    """
    Time an engine and eager PyTorch in turns: same process, images and threads; from uint8 images to uint8 labels.

    The images are those of the bundle's data set, or noise where it is not there; the result says which.

    For example:

    - `ddcat-bench speed runs/scenes-ddcat/bundle`

    - `ddcat-bench speed model.bundle --size 473x473 --repeats 100 --threads 4`
    """
    from ddcat.bundle import open_bundle
    from ddcat.files import check_vacant
    from ddcat.progress import progress
    from ddcat_bench.output import beside, publish
    from ddcat_bench.speed import draw_inputs, measure
    from ddcat_bench.subjects import checkpoint_of, open_bundle_data
    from ddcat_bench.tables import speed_markdown
    from ddcat_serve.engines import open_engine
    from ddcat_serve.engines.base import physical_cores

    opened = open_bundle(bundle)
    folder = out or beside(bundle, "speed")
    check_vacant(folder)
    loaded = checkpoint_of(opened, checkpoint)
    there = data_root is not None or Path(opened.manifest.data.root).is_dir()
    dataset = open_bundle_data(opened, data_root=data_root) if there else None
    inputs = draw_inputs(opened, dataset, repeats=repeats, batch=batch, size=parse_size(size) if size else None)
    used = threads or physical_cores()
    with (
        open_engine(opened, threads=used) as engine,
        progress("timing", len(inputs.batches), unit="pairs") as advance,
    ):
        result = measure(opened, engine, loaded, inputs, threads=used, advance=advance)
    publish(folder, "speed", result, speed_markdown(result))


def main() -> None:
    """Run the command."""
    command.run(app)
