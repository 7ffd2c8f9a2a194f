"""`ddcat train-step`: the time and memory of our training step beside those of two baselines."""

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from ddcat_bench.errors import BenchError
from ddcat_bench.subjects import describe_environment
from ddcat_bench.timing.arithmetic import arithmetic
from ddcat_bench.timing.baselines import BaselineName, check_comparable
from ddcat_bench.timing.busy import others_watch
from ddcat_bench.timing.contenders import CONTENDERS, Contender, ContenderName, Ours, Plan, contend, draw_batch
from ddcat_bench.timing.matrix_product import matrix_product_peak
from ddcat_bench.timing.results import StepEntry, StepRatio, TrainStepResult
from ddcat_bench.timing.step_memory import MEMORY, peak_memory
from ddcat_bench.timing.turns import interleave, ratio, times

__all__ = ["BOUNDARY", "measure"]

BOUNDARY = (
    "A step: from a batch in the host's memory to updated weights on the device, with the attack; no reading or augmentation "
    "of images. In one process the contenders take turns, each turn begins with another one, and the device is waited for "
    "before and after each step."
)


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
        What the configuration is called.
    repeats : int
        Timed steps of each.
    warm_up : int
        Steps of each before those; in the first of them the operations are counted.
    advance : callable, optional
        Is told the number of steps that were taken; there are 3 * (repeats + warm_up + 1).

    Raises
    ------
    BenchError
        Where the baselines have no such step, or a process ran out of memory.
    """
    check_comparable(plan.config)
    config, batch = plan.config, plan.config.train.batch_size
    height, width = config.augment.crop
    began = time.monotonic()
    load_before, others = os.getloadavg()[0], others_watch()
    with arithmetic(plan.threads, tf32=plan.tf32):
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
