"""The command ddcat-bench."""

from pathlib import Path
from typing import Annotated

import typer

from ddcat import command
from ddcat.command import ExpectDigest, RequireSignature, parse_size
from ddcat_bench.attack_cli import attack
from ddcat_bench.compare_cli import compare
from ddcat_bench.drift_cli import drift
from ddcat_bench.gate_cli import gate
from ddcat_bench.options import DataRoot, Limit, MovedCheckpoint, Split
from ddcat_bench.scenarios_cli import scenarios
from ddcat_train.worker import launched, report_to_agent

__all__ = ["app", "attack", "main"]

app = typer.Typer(
    help="Judge checkpoints and the engines made from them. Every result is also a JSON file.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)

app.command()(attack)
app.command()(gate)
app.command()(compare)
app.command()(scenarios)
app.command()(drift)


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
    require_signature: RequireSignature = None,
    expect_digest: ExpectDigest = None,
) -> None:
    """
    Compare an engine's labels with those of the PyTorch main branch, on clean and on attacked 8-bit images.

    It is a comparison, not a gate: the exit status is 0 whatever the figures, 2 where they cannot be had.

    For example:

    - `ddcat-bench fidelity runs/scenes-ddcat/bundle`

    - `ddcat-bench fidelity model.bundle --checkpoint runs/old --data-root /data/camvid --limit 50`
    """
    from ddcat.bundle import Trust, open_bundle
    from ddcat.files import reserve
    from ddcat.progress import progress
    from ddcat_bench.fidelity import compare as compare_labels
    from ddcat_bench.output import beside, publish
    from ddcat_bench.subjects import checkpoint_of, open_bundle_data
    from ddcat_bench.tables import fidelity_markdown
    from ddcat_serve.engines import open_engine

    opened = open_bundle(bundle, Trust(require_signature, tuple(expect_digest or ())))
    folder = out or beside(bundle, "fidelity")
    reserve(folder)
    loaded = checkpoint_of(opened, checkpoint)
    dataset = open_bundle_data(opened, data_root=data_root, split=split)
    with (
        open_engine(opened) as engine,
        progress("comparing", min(limit or len(dataset), len(dataset))) as advance,
    ):
        result = compare_labels(opened, engine, loaded, dataset, limit=limit, advance=advance)
    publish(folder, "fidelity", result, fidelity_markdown(result))


@app.command()
def speed(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Directory that ddcat-export wrote.")],
    checkpoint: MovedCheckpoint = None,
    data_root: DataRoot = None,
    repeats: Annotated[int, typer.Option(help="Timed calls of each contender; 10 or more.")] = 30,
    size: Annotated[
        str | None, typer.Option(metavar="HEIGHTxWIDTH", help="Of the images.", show_default="the engine's, or the data's")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Images in a call.")] = 1,
    threads: Annotated[int | None, typer.Option(min=1, help="Of each contender.", show_default="the physical cores")] = None,
    compiled: Annotated[bool, typer.Option("--compiled", help="Time torch.compile of the main branch, too.")] = False,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="A new folder.", show_default="BUNDLE-speed beside the bundle")
    ] = None,
    require_signature: RequireSignature = None,
    expect_digest: ExpectDigest = None,
) -> None:
    """
    Time an engine and eager PyTorch in turns: same process, images and threads; from uint8 images to uint8 labels.

    PyTorch computes the original graph, and our main branch. The peak memory of each is that of a process of its own.

    The images are those of the bundle's data set, or noise where it is not there; the result says which.

    For example:

    - `ddcat-bench speed runs/scenes-ddcat/bundle`

    - `ddcat-bench speed model.bundle --size 473x473 --repeats 100 --threads 4`
    """
    from ddcat.bundle import Trust, open_bundle
    from ddcat.files import reserve
    from ddcat.progress import progress
    from ddcat_bench.memory import serving_peak
    from ddcat_bench.output import beside, publish
    from ddcat_bench.speed import draw_inputs, measure
    from ddcat_bench.subjects import checkpoint_of, open_bundle_data
    from ddcat_bench.tables import speed_markdown
    from ddcat_serve.engines import open_engine
    from ddcat_serve.engines.base import physical_cores

    opened = open_bundle(bundle, Trust(require_signature, tuple(expect_digest or ())))
    folder = out or beside(bundle, "speed")
    reserve(folder)
    loaded = checkpoint_of(opened, checkpoint)
    there = data_root is not None or Path(opened.manifest.data.root).is_dir()
    dataset = open_bundle_data(opened, data_root=data_root) if there else None
    inputs = draw_inputs(opened, dataset, repeats=repeats, batch=batch, size=parse_size(size) if size else None)
    used = threads or physical_cores()
    with (
        open_engine(opened, threads=used) as engine,
        progress("timing", (3 + compiled) * len(inputs.batches), unit="calls") as advance,
    ):
        result = measure(opened, engine, loaded, inputs, threads=used, peak=serving_peak, compiled=compiled, advance=advance)
    publish(folder, "speed", result, speed_markdown(result))


@app.command(name="train-step")
def train_step(
    preset: Annotated[str, typer.Argument(metavar="PRESET|CONFIG.yaml", help="As for ddcat-train, which lists all presets.")],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override one value; may be given again.")
    ] = None,
    crop: Annotated[
        tuple[int, int] | None, typer.Option(metavar="HEIGHT WIDTH", help="Of the images.", show_default="the preset's")
    ] = None,
    batch: Annotated[int | None, typer.Option(help="Images in a step.", show_default="the preset's")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    precision: Annotated[str | None, typer.Option(help="Of our step: fp32, bf16 or fp64.", show_default="the preset's")] = None,
    baseline_precision: Annotated[str | None, typer.Option(help="Of the baselines.", show_default="that of our step")] = None,
    tf32: Annotated[
        bool, typer.Option("--tf32/--no-tf32", help="Let a GPU round products in fp32 to TF32, of all contenders.")
    ] = False,
    repeats: Annotated[int, typer.Option(min=1, help="Timed steps of each contender.")] = 10,
    warmup: Annotated[
        int | None, typer.Option(min=1, help="Steps of each before those.", show_default="1 on a CPU, 3 on a GPU")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Of PyTorch on the CPU.", show_default="PyTorch's own choice")
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="A new folder.", show_default="train-step/PRESET")] = None,
) -> None:
    """
    Time our training step and two baselines in turns: same process, images, weights and threads.

    The baselines take the same step in plain layers. (a) *released*: the attack is on the whole batch, through all heads, with
    gradients of all parameters; nothing is reused. (b) *frugal*: main head and input gradients alone in the attack; nothing is
    reused. The images are noise, of the preset's crop; its data set need not be there. Peak memory is of a process for each.

    For example:

    - `ddcat-bench train-step scenes-ddcat`

    - `ddcat-bench train-step voc-pspnet50-ddcat --crop 233 233 --batch 2 --repeats 3 --device cpu`

    - `ddcat-bench train-step voc-deeplabv3_50-sat --precision bf16 --baseline-precision fp32 --tf32 --device cuda`
    """
    from ddcat.files import reserve
    from ddcat.progress import progress
    from ddcat_train.config import load_config

    crops = [] if crop is None else [f"augment.crop=[{crop[0]}, {crop[1]}]"]
    batches = [] if batch is None else [f"train.batch_size={batch}"]
    precisions = [] if precision is None else [f"train.precision={precision}"]
    config = load_config(preset, [*(overrides or []), *crops, *batches, *precisions])
    folder = out or Path("train-step") / Path(preset).stem
    reserve(folder)

    import torch

    from ddcat_bench.contenders import CONTENDERS, Plan, as_precision
    from ddcat_bench.output import publish
    from ddcat_bench.subjects import torch_device
    from ddcat_bench.tables import train_step_markdown
    from ddcat_bench.train_step import measure

    chosen = torch_device(device).type
    plan = Plan(
        config,
        as_precision(baseline_precision or config.train.precision),
        chosen,
        threads or torch.get_num_threads(),
        tf32,
    )
    warm_up = warmup or (3 if chosen == "cuda" else 1)
    with progress("stepping", len(CONTENDERS) * (repeats + warm_up + 1), unit="steps") as advance:
        result = measure(plan, preset, repeats=repeats, warm_up=warm_up, advance=advance)
    publish(folder, "train-step", result, train_step_markdown(result))


@app.command()
def tables(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="Result folders of ddcat-bench attack, their attack.json, or run directories."),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="A new folder.")] = Path("tables"),
) -> None:
    """
    Make the paper's Tables 1 to 5 from any set of attack results: mean and standard deviation over seeds.

    White-box, black-box, ablation and clean tables of each data set that is among them, with the paper's own numbers where it
    has some, and below each white-box table what SEA leaves of the same checkpoints. Markdown, LaTeX (booktabs), CSV, JSON.
    Results that do not compare (other images, protocols, suites) are refused, not averaged.

    For example:

    - `ddcat-bench tables runs/voc-*`

    - `ddcat-bench tables runs/ddcat-0/attack-paper runs/ddcat-0/attack-sea runs/ddcat-1/attack-paper --out results/tables`
    """
    from ddcat.files import reserve
    from ddcat_bench.judged import find_results
    from ddcat_bench.output import publish
    from ddcat_bench.paper_tables import make_tables
    from ddcat_bench.table_files import tables_csv, tables_latex, tables_markdown

    reserve(out)
    made = make_tables(find_results(runs))
    files = {"tables.tex": tables_latex(made).encode(), "tables.csv": tables_csv(made).encode()}
    publish(out, "tables", made, tables_markdown(made), files)


def main() -> None:
    """Run the command."""
    (report_to_agent if launched() else command.run)(app)


if __name__ == "__main__":  # for torchrun -m
    main()
