"""The command ddcat train-step."""

from pathlib import Path
from typing import Annotated, get_args

import typer

from ddcat.cli_support import DEVICES, parse_choice
from ddcat_bench.options import Force

__all__ = ["train_step"]


def train_step(
    preset: Annotated[str, typer.Argument(metavar="PRESET|CONFIG.yaml", help="A preset, or a configuration file.")],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override one value; may be given again.")
    ] = None,
    crop: Annotated[
        tuple[int, int] | None, typer.Option(metavar="HEIGHT WIDTH", help="Size of the images.", show_default="the preset's")
    ] = None,
    batch: Annotated[int | None, typer.Option(help="Images in a step.", show_default="the preset's")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    precision: Annotated[
        str | None, typer.Option(help="Precision of our step: fp32, bf16 or fp64.", show_default="the preset's")
    ] = None,
    baseline_precision: Annotated[
        str | None, typer.Option(help="Precision of the baselines.", show_default="that of our step")
    ] = None,
    tf32: Annotated[
        bool, typer.Option("--tf32/--no-tf32", help="Let a GPU round fp32 products of all contenders to TF32.")
    ] = False,
    repeats: Annotated[int, typer.Option(min=1, help="Timed steps of each contender.")] = 10,
    warmup: Annotated[
        int | None, typer.Option(min=1, help="Steps of each before the timed ones.", show_default="1 on a CPU, 3 on a GPU")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of PyTorch on the CPU.", show_default="PyTorch's own choice")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of the result.", show_default="train-step/PRESET")
    ] = None,
    force: Force = False,
) -> None:
    """
    Time our training step and two baselines in turns: same process, images, weights and threads.

    The baselines take the same step in plain layers. (a) *released*: the attack is on the whole batch, through all heads, with
    gradients of all parameters; nothing is reused. (b) *frugal*: main head and input gradients alone in the attack; nothing is
    reused. The images are noise, of the preset's crop; its data set need not be there. Peak memory is of a process for each.

    For example:

    - `ddcat train-step scenes-ddcat`

    - `ddcat train-step voc-pspnet50-ddcat --crop 233 233 --batch 2 --repeats 3 --device cpu`

    - `ddcat train-step voc-deeplabv3_50-sat --precision bf16 --baseline-precision fp32 --tf32 --device cuda`
    """
    from ddcat.progress import progress
    from ddcat_bench.output import claim, publish
    from ddcat_bench.timing.results import Precision
    from ddcat_train.config import load_config

    crops = [] if crop is None else [f"augment.crop=[{crop[0]}, {crop[1]}]"]
    batches = [] if batch is None else [f"train.batch_size={batch}"]
    precisions = [] if precision is None else [f"train.precision={precision}"]
    config = load_config(preset, [*(overrides or []), *crops, *batches, *precisions])
    folder = out or Path("train-step") / Path(preset).stem
    theirs = parse_choice("--baseline-precision", baseline_precision or config.train.precision, get_args(Precision))
    parse_choice("--device", device, DEVICES)

    with claim(folder, "train-step", force=force):
        import torch

        from ddcat_bench.subjects import torch_device
        from ddcat_bench.timing.contenders import CONTENDERS, Plan
        from ddcat_bench.timing.train_step import measure
        from ddcat_bench.timing.train_step_report import train_step_markdown

        chosen = torch_device(device).type
        plan = Plan(
            config,
            theirs,
            chosen,
            threads or torch.get_num_threads(),
            tf32,
        )
        warm_up = warmup or (3 if chosen == "cuda" else 1)
        with progress("stepping", len(CONTENDERS) * (repeats + warm_up + 1), unit="steps") as advance:
            result = measure(plan, preset, repeats=repeats, warm_up=warm_up, advance=advance)
        publish(folder, "train-step", result, train_step_markdown(result), force=force)
