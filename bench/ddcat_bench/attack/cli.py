"""The command `ddcat attack`."""

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from ddcat.choices import Device
from ddcat_bench.cli_options import DataRoot, Force, MaxImages, ProtocolName, Split, SuiteName

__all__ = ["attack"]


def attack(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT", help="A checkpoint, or a run directory, whose best one is taken.")
    ],
    suite: Annotated[
        SuiteName,
        typer.Option(
            help="quick: BIM n = 1..7; paper: also n = 10, 20, PGD-20; sea: the strongest attack known; full: all and more."
        ),
    ] = "quick",
    data_root: DataRoot = None,
    split: Split = None,
    max_images: MaxImages = None,
    batch: Annotated[int, typer.Option(min=1, help="Number of images in a batch.")] = 8,
    epsilon: Annotated[
        list[str] | None,
        typer.Option(
            metavar="E",
            help="Bound of the attacks of sea and full, such as 8/255. Repeat it for several bounds.",
            show_default="4/255 and 8/255",
        ),
    ] = None,
    iterations: Annotated[
        int | None, typer.Option(min=1, help="Number of steps of SEA with each of its losses.", show_default="300")
    ] = None,
    surrogate: Annotated[
        list[Path] | None,
        typer.Option(metavar="CHECKPOINT", help="Also transfer BIM, n = 1..7, from this checkpoint. Repeat it for several."),
    ] = None,
    protocol: Annotated[
        ProtocolName,
        typer.Option(help="whole: attack whole images; windows: attack sliding windows, as the released code does."),
    ] = "whole",
    seed: Annotated[int, typer.Option(min=0, help="Seed of random starts and of black-box searches.")] = 0,
    device: Annotated[Device, typer.Option(help="Device of the attacks.")] = "auto",
    jobs: Annotated[
        int | None,
        typer.Option(
            help="Number of processes that share the work: one for each GPU, or all on the CPU. Not under torchrun.",
            show_default="1",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Write the result into this folder.", show_default="attack-SUITE beside the checkpoint"
        ),
    ] = None,
    force: Force = False,
) -> None:
    """
    Attack a checkpoint's main branch and report its mIoU under each attack, in floats and on 8-bit images.

    Finished parts are kept beside the result, in DIR.work. After an interruption the same command continues. Several processes
    share that folder and give the same result as one; `torchrun -m ddcat attack ...` starts them, too.

    For example:

    - `ddcat attack runs/scenes-ddcat`

    - `ddcat attack runs/camvid-sat --suite paper --data-root /data/camvid --out results/sat`

    - `ddcat attack runs/camvid-sat --suite sea --iterations 50 --epsilon 4/255 --max-images 34`

    - `ddcat attack runs/camvid-sat --surrogate runs/camvid-undefended`

    - `ddcat attack runs/voc-ddcat --suite full --jobs 8`
    """
    from ddcat_bench.arguments import parse_epsilon
    from ddcat_train.checkpoint_files import check_checkpoint

    epsilons = tuple(map(parse_epsilon, epsilon)) if epsilon else None
    for path in (checkpoint, *(surrogate or [])):
        check_checkpoint(path)

    from ddcat_bench.attack.job import AttackJob, open_surrogates
    from ddcat_bench.attack.run import run_job
    from ddcat_bench.inputs import open_split, torch_device
    from ddcat_train.checkpoints import load_checkpoint

    loaded = load_checkpoint(checkpoint)
    dataset = open_split(loaded, data_root=data_root, split=split)
    job = AttackJob(
        loaded,
        dataset if protocol == "whole" else dataclasses.replace(dataset, long_side=None),
        suite=suite,
        epsilons=epsilons,
        iterations=iterations,
        surrogates=open_surrogates(loaded, surrogate or []),
        seed=seed,
        protocol=protocol,
        batch_size=batch,
        max_images=max_images,
        device=torch_device(device),
    )
    run_job(job, out or loaded.path.parent / f"attack-{suite}", jobs=jobs, force=force)
