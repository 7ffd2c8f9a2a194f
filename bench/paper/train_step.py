"""
Time our training step and two baselines in turns: same process, images, weights and threads.

    python bench/paper/train_step.py scenes-ddcat
    python bench/paper/train_step.py voc-pspnet50-ddcat --crop 233 233 --batch 2 --repeats 3 --device cpu
    python bench/paper/train_step.py voc-deeplabv3_50-sat --precision bf16 --baseline-precision fp32 --tf32 --device cuda

The baselines take the same step in plain layers. (a) released: the attack is on the whole batch, through all heads, with
gradients of all parameters; nothing is reused. (b) frugal: main head and input gradients alone in the attack; nothing is
reused. The images are noise, of the preset's crop; its data set need not be there. Peak memory is of a process for each.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

sys.path.insert(0, str(Path(__file__).parents[2]))

from bench.paper.baselines import BaselineName, check_comparable
from bench.paper.contenders import CONTENDERS, Contender, ContenderName, Ours, Plan, contend, draw_batch
from bench.paper.step_memory import MEMORY, peak_memory
from bench.paper.train_step_report import train_step_markdown
from bench.paper.train_step_results import StepEntry, StepRatio, TrainStepResult
from ddcat.choices import Device
from ddcat.cli_support import run
from ddcat.progress import progress
from ddcat_bench.describe import describe_environment
from ddcat_bench.errors import BenchError
from ddcat_bench.inputs import torch_device
from ddcat_bench.publish import claim, publish
from ddcat_bench.timing.cpu_contention import watch_contention
from ddcat_bench.timing.interleave import interleave, ratio, times
from ddcat_bench.timing.pytorch_models import torch_settings
from ddcat_bench.timing.results import Precision
from ddcat_bench.timing.throughput import matrix_product_peak
from ddcat_train.config import load_config

BOUNDARY = (
    "A step: from a batch in the host's memory to updated weights on the device, with the attack; no reading or augmentation "
    "of images. In one process the contenders take turns, each turn begins with another one, and the device is waited for "
    "before and after each step."
)


def main() -> None:
    """Measure what the command line names, and publish the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset", metavar="PRESET|CONFIG.yaml", help="a preset, or a configuration file")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override one value; may be repeated")
    parser.add_argument("--crop", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="size of images (default: the preset's)")
    parser.add_argument("--batch", type=int, help="images in a step (default: the preset's)")
    parser.add_argument("--device", choices=get_args(Device), default="auto", help="device of all contenders (default: auto)")
    parser.add_argument("--precision", help="precision of our step: fp32, bf16 or fp64 (default: the preset's)")
    parser.add_argument("--baseline-precision", choices=get_args(Precision), help="precision of the baselines (default: ours)")
    parser.add_argument(
        "--tf32", action=argparse.BooleanOptionalAction, default=False, help="round fp32 products to TF32 on a GPU"
    )
    parser.add_argument("--repeats", type=positive, default=10, help="timed steps of each contender (default: 10)")
    parser.add_argument("--warmup", type=positive, help="steps of each before the timed ones (default: 1 on a CPU, 3 on a GPU)")
    parser.add_argument("--threads", type=positive, help="threads of PyTorch on the CPU (default: PyTorch's own choice)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the result (default: train-step/PRESET)")
    parser.add_argument("--force", action="store_true", help="replace an earlier result")
    given = parser.parse_args()
    crop = [] if given.crop is None else [f"augment.crop={given.crop}"]
    batch = [] if given.batch is None else [f"train.batch_size={given.batch}"]
    precision = [] if given.precision is None else [f"train.precision={given.precision}"]
    config = load_config(given.preset, [*given.set, *crop, *batch, *precision])
    folder = given.out or Path("train-step") / Path(given.preset).stem
    with claim(folder, "train-step", force=given.force):
        device = torch_device(given.device).type
        theirs = given.baseline_precision or config.train.precision
        plan = Plan(config, theirs, device, given.threads or torch.get_num_threads(), given.tf32)
        warm_up = given.warmup or (3 if device == "cuda" else 1)
        with progress("stepping", len(CONTENDERS) * (given.repeats + warm_up + 1), unit="steps") as advance:
            result = measure(plan, given.preset, repeats=given.repeats, warm_up=warm_up, advance=advance)
        publish(folder, "train-step", result, train_step_markdown(result), force=given.force)


def positive(text: str) -> int:
    """Read a number of 1 or more."""
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def measure(
    plan: Plan,
    preset: str,
    *,
    repeats: int,
    warm_up: int,
    advance: Callable[[int], None] = lambda steps: None,
) -> TrainStepResult:
    """
    Time the contenders in turns, then take the memory of each in a process of its own.

    Parameters
    ----------
    plan : Plan
    preset : str
        Name of the configuration.
    repeats : int
        Timed steps of each.
    warm_up : int
        Steps of each before those; in the first of them the operations are counted.
    advance : callable, optional
        Called with the number of steps that were taken; there are 3 * (repeats + warm_up + 1).

    Raises
    ------
    BenchError
        If the baselines have no such step, or a process ran out of memory.
    """
    check_comparable(plan.config)
    config, batch = plan.config, plan.config.train.batch_size
    height, width = config.augment.crop
    began = time.monotonic()
    load_before, others = os.getloadavg()[0], watch_contention()
    with torch_settings(plan.threads, tf32=plan.tf32):
        first = _peaks(plan)
        try:
            operations, seconds = _time(plan, repeats=repeats, warm_up=warm_up, advance=advance)
        except torch.OutOfMemoryError as cause:
            raise BenchError(
                f"the device has too little memory for the three contenders at {batch} x {height} x {width} (images x height x "
                "width): use a smaller --batch or --crop"
            ) from cause
        if plan.device == "cuda":
            torch.cuda.empty_cache()  # for the processes to come
        load_after, busy = os.getloadavg()[0], others()
        # The higher of before and after: where others slowed one of them down, contenders would seem to surpass the peak.
        peaks = {precision: max(first[precision], peak) for precision, peak in _peaks(plan).items()}
        memory = {}
        for name in CONTENDERS:
            memory[name] = peak_memory(plan, name)
            advance(1)
        environment = describe_environment(torch.device(plan.device), time.monotonic() - began)
    entries = []
    for name in CONTENDERS:
        summary, precision = times(seconds[name]), plan.precision(name)
        entries.append(
            StepEntry(
                name=name,
                precision=precision,
                times=summary,
                images_per_second=batch / summary.median,
                operations=operations[name],
                peak_share=operations[name] / summary.median / peaks[precision],
                peak_memory=memory[name],
            )
        )
    return TrainStepResult(
        preset=preset,
        method=config.method.name,
        architecture=f"{config.model.backbone} + {config.model.context}",
        config=config.model_dump(mode="json"),
        classes=len(plan.classes),
        batch=batch,
        height=height,
        width=width,
        tf32=plan.tf32,
        warm_up=warm_up,
        boundary=BOUNDARY,
        memory=MEMORY[plan.device],
        contenders=tuple(entries),
        ratios=tuple(
            StepRatio(baseline=name, **dict(ratio(seconds[name], seconds["ours"]))) for name in get_args(BaselineName)
        ),
        matrix_product_peak=peaks,
        load_before=load_before,
        load_after=load_after,
        others=busy,
        environment=environment,
    )


def _peaks(plan: Plan) -> dict[str, float]:
    precisions = dict.fromkeys(plan.precision(name) for name in CONTENDERS)
    return {precision: matrix_product_peak(precision, torch.device(plan.device)) for precision in precisions}


def _time(
    plan: Plan, *, repeats: int, warm_up: int, advance: Callable[[int], None]
) -> tuple[dict[ContenderName, int], dict[ContenderName, list[float]]]:
    """Operations and seconds of each contender."""
    with tempfile.TemporaryDirectory() as folder:
        ours = Ours(plan, Path(folder))
        weights = ours.weights()
        contenders: dict[ContenderName, Contender] = {
            name: ours if name == "ours" else contend(plan, name, Path(folder), weights) for name in CONTENDERS
        }
        batch = draw_batch(plan)
        operations = {}
        for name, contender in contenders.items():
            with _Operations() as counted:
                contender.step(batch)
            operations[name] = counted.total
            advance(1)
        turns = interleave(
            {name: contender.step for name, contender in contenders.items()},
            [batch] * (repeats + warm_up - 1),
            wait=torch.cuda.synchronize if plan.device == "cuda" else lambda: None,
            advance=advance,
        )
    return operations, {name: [turn[name] for turn in turns[warm_up - 1 :]] for name in CONTENDERS}


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts as torch's FlopCounterMode does, which follows modules beside and so refuses gradients of inputs alone."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func._overloadpacket in flop_registry:
            self.total += flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=result)
        return result


if __name__ == "__main__":
    run(main)
