"""The command `ddcat attack`."""

import dataclasses
from pathlib import Path
from typing import Annotated, get_args

import typer

from ddcat.cli_support import DEVICES, parse_choice
from ddcat_bench.errors import BenchError
from ddcat_bench.options import DataRoot, Force, Limit, Split

__all__ = ["attack"]


def attack(
    checkpoint: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="A checkpoint, or a run directory: its best one.")],
    suite: Annotated[
        str,
        typer.Option(
            help="quick: BIM n = 1..7; paper: also n = 10, 20, PGD-20; sea: the strongest attack known; full: all and more."
        ),
    ] = "quick",
    data_root: DataRoot = None,
    split: Split = None,
    limit: Limit = None,
    batch: Annotated[int, typer.Option(min=1, help="Images that are attacked at once.")] = 8,
    epsilon: Annotated[
        list[str] | None,
        typer.Option(
            metavar="E",
            help="Bound of the attacks of sea and full, such as 8/255; may be given again.",
            show_default="4/255 and 8/255",
        ),
    ] = None,
    iterations: Annotated[
        int | None, typer.Option(min=1, help="Steps of SEA for each of its losses.", show_default="300")
    ] = None,
    substitute: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="CHECKPOINT", help="Also make BIM, n = 1..7, on this checkpoint (a transfer attack); may be given again."
        ),
    ] = None,
    measure: Annotated[bool, typer.Option("--measure", help="Time the sweep n = 1..7 beside a plain one instead.")] = False,
    repeats: Annotated[int, typer.Option(min=1, help="Timed sweeps of each kind, with --measure.")] = 5,
    protocol: Annotated[str, typer.Option(help="whole: whole images; windows: sliding windows, as released.")] = "whole",
    seed: Annotated[int, typer.Option(min=0, help="Seed of random starts and black-box searches.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    devices: Annotated[
        int | None, typer.Option(help="Devices of this machine, one process for each; 1 by default. Not under torchrun.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder of the result.", show_default="attack-SUITE beside the checkpoint"),
    ] = None,
    force: Force = False,
) -> None:
    """
    Attack a checkpoint's main branch and score what is left, in floats and on 8-bit images.

    What is done is kept beside the result, in DIR.work: after Ctrl-C, or worse, the same command continues. Several processes
    share that folder, and find what one finds with as many threads; `torchrun -m ddcat attack ...` starts them, too.

    For example:

    - `ddcat attack runs/scenes-ddcat`

    - `ddcat attack runs/camvid-sat --suite paper --data-root /data/camvid --out results/sat`

    - `ddcat attack runs/camvid-sat --suite sea --iterations 50 --epsilon 4/255 --limit 34`

    - `ddcat attack runs/camvid-sat --substitute runs/camvid-clean`

    - `ddcat attack runs/voc-ddcat --suite full --devices 8`

    - `ddcat attack runs/voc-ddcat --measure --batch 4` times the sweep beside separate attacks
    """
    from ddcat_bench.arguments import parse_epsilon
    from ddcat_bench.attack.results import ProtocolName, SuiteName
    from ddcat_train.checkpoint_files import check_checkpoint

    name: SuiteName = parse_choice("--suite", suite, get_args(SuiteName))
    way: ProtocolName = parse_choice("--protocol", protocol, get_args(ProtocolName))
    epsilons = tuple(map(parse_epsilon, epsilon)) if epsilon else None
    parse_choice("--device", device, DEVICES)
    if measure:
        given = {
            "--suite": suite != "quick", "--limit": limit, "--epsilon": epsilon, "--iterations": iterations,
            "--substitute": substitute, "--protocol": protocol != "whole", "--seed": seed, "--devices": devices,
        }  # fmt: skip
        for option, value in given.items():
            if value:
                raise BenchError(
                    f"{option}: --measure times BIM, n = 1..7, in one process, and does not use this option: leave it out"
                )
    for path in (checkpoint, *(substitute or [])):
        check_checkpoint(path)

    from ddcat_bench.attack.command import judge, measure_sweep
    from ddcat_bench.attack.evaluation import Evaluation, open_substitutes
    from ddcat_bench.subjects import open_split, torch_device
    from ddcat_train.checkpoints import load_checkpoint

    loaded = load_checkpoint(checkpoint)
    dataset = open_split(loaded, data_root=data_root, split=split)
    evaluation = Evaluation(
        loaded,
        dataset if way == "whole" else dataclasses.replace(dataset, long_side=None),
        suite=name,
        epsilons=epsilons,
        iterations=iterations,
        substitutes=open_substitutes(loaded, substitute or []),
        seed=seed,
        protocol=way,
        batch_size=batch,
        limit=limit,
        device=torch_device(device),
    )
    if measure:
        measure_sweep(evaluation, out or loaded.path.parent / "attack-measure", repeats=repeats, force=force)
    else:
        judge(evaluation, out or loaded.path.parent / f"attack-{name}", devices=devices, force=force)
