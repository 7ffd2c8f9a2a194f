"""
Time the sweep BIM, n = 1..7, beside a plain one that attacks anew for each n.

    python bench/paper/sweep_speed.py runs/sat --batch 4 --repeats 3
"""

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from bench.paper.reference_networks import PlainSegmenter, plain_network
from bench.paper.train_step_report import quiet_note
from ddcat.choices import Device
from ddcat.classes import IGNORE_INDEX
from ddcat.cli_support import run
from ddcat.progress import progress
from ddcat.schema import Fraction
from ddcat_bench.attack.attacks import Meter
from ddcat_bench.attack.job import AttackJob, count_class_pixels
from ddcat_bench.attack.suites import BIM
from ddcat_bench.describe import describe_data, describe_environment, describe_reference
from ddcat_bench.errors import BenchError
from ddcat_bench.inputs import main_branch, open_split, torch_device
from ddcat_bench.markdown import data_line, provenance_lines, table
from ddcat_bench.publish import claim, publish
from ddcat_bench.result_schema import CheckpointEntry, DataEntry
from ddcat_bench.timing.cpu_contention import watch_contention
from ddcat_bench.timing.interleave import interleave, ratio, times
from ddcat_bench.timing.results import Times, Watched
from ddcat_bench.timing.speed import neighbours
from ddcat_train.attacks import Model, sea, trajectory
from ddcat_train.checkpoints import load_checkpoint
from ddcat_train.data.loader import evaluation_batches
from ddcat_train.tf32 import forbid_tf32

BOUNDARY = (
    "A sweep: from a batch on the device to the labels of n = 0..7, there, too. Ours: one trajectory of 7 steps, input "
    "gradients alone, channels last, fooled images left out, and the labels for n are of the forward of step n + 1. Plain: for "
    "each n an attack of its own from the clean images on, gradients of all parameters, plain layers in contiguous memory, and "
    "a forward for the labels; the main head alone in both. In one process they take turns, each turn begins with the other "
    "one, and the device is waited for before and after."
)
_STEPS = BIM.counted[-1]
_SEA_STEPS, _SEA_EPSILON = 20, 8 / 255

Contender = Literal["ours", "plain"]


class SweepResult(Watched):
    """What `bench/paper/sweep_speed.py` measured."""

    schema_version: Literal[1] = 1
    kind: Literal["attack-measure"] = "attack-measure"
    checkpoint: CheckpointEntry
    data: DataEntry
    batch: int = Field(ge=1, description="images, attacked at once")
    height: int
    width: int
    boundary: str
    ours: Times
    plain: Times
    median: float = Field(description="of plain / ours in the same turn: how many times as fast ours is")
    lower_quartile: float
    upper_quartile: float
    lowest: float
    highest: float
    agreement: Fraction = Field(description="share of the pixels, over n = 0..7, with the same label in both")
    sea_steps: int = Field(description="steps of the SEA that early stopping is measured on, at 8/255")
    sea_seen: Fraction = Field(description="share of its forwards that were computed; the rest were of fooled images")


def main() -> None:
    """Measure on the checkpoint that the command line names, and publish the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="a checkpoint, or a run directory: its best one")
    parser.add_argument("--data-root", type=Path, help="folder of the data set, if it has moved since training")
    parser.add_argument("--split", help="split to attack (default: the validation split of training)")
    parser.add_argument("--batch", type=int, default=8, help="images that are attacked at once (default: 8)")
    parser.add_argument("--repeats", type=int, default=5, help="timed sweeps of each kind (default: 5)")
    parser.add_argument("--device", choices=get_args(Device), default="auto", help="device of both sweeps (default: auto)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the result (default: sweep-speed beside it)")
    parser.add_argument("--force", action="store_true", help="replace an earlier result")
    given = parser.parse_args()
    loaded = load_checkpoint(given.checkpoint)
    dataset = open_split(loaded, data_root=given.data_root, split=given.split)
    job = AttackJob(loaded, dataset, batch_size=given.batch, device=torch_device(given.device))
    folder = given.out or loaded.path.parent / "sweep-speed"
    forbid_tf32()
    with claim(folder, "attack-measure", force=given.force):
        with progress("sweeping", 2 * (given.repeats + 1), unit="sweeps") as advance:
            result = measure(job, repeats=given.repeats, advance=advance)
        publish(folder, "attack-measure", result, sweep_markdown(result), force=given.force)


def measure(job: AttackJob, *, repeats: int, advance: Callable[[int], None] = lambda sweeps: None) -> SweepResult:
    """
    Time both sweeps in turns on one batch, compare their labels, and count what early stopping spares SEA.

    Parameters
    ----------
    job : AttackJob
        Its checkpoint, data, batch size and device are used; the batch is spread evenly over the split.
    repeats : int
        Timed sweeps of either, after one to warm up, in which the labels are compared.
    advance : callable, optional
        Called with the number of sweeps that were made; there are 2 * (repeats + 1).

    Raises
    ------
    BenchError
        If there is no plain form of the network, or the images differ in size.
    DataError
    """
    checkpoint, dataset, device = job.reference, job.dataset, job.device
    began, load_before, others = time.monotonic(), os.getloadavg()[0], watch_contention()
    count = min(job.batch_size, len(dataset))
    names, images, labels = next(evaluation_batches(dataset, batch_size=count, limit=count))
    if len(names) < count:
        raise BenchError(f"the images of {dataset.root} differ in size: use --batch {len(names)}")
    ours, plain = main_branch(checkpoint, device), plain_network(checkpoint, device)
    pixels, truth = images.to(device), labels.to(device)
    channels_last = pixels.contiguous(memory_format=torch.channels_last)
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    same = (_our_sweep(ours, channels_last, truth) == plain_sweep(plain, pixels, truth)).float().mean()
    advance(2)
    sweeps: dict[Contender, Callable[[Tensor], Tensor]] = {
        "ours": lambda truth: _our_sweep(ours, channels_last, truth),
        "plain": lambda truth: plain_sweep(plain, pixels, truth),
    }
    turns = interleave(sweeps, [truth] * repeats, wait=wait, advance=advance)
    load_after, busy = os.getloadavg()[0], others()
    seconds = {name: [turn[name] for turn in turns] for name in sweeps}
    faster = ratio(seconds["plain"], seconds["ours"])
    usual = checkpoint.data.list_sha256
    return SweepResult(
        checkpoint=describe_reference(checkpoint),
        data=describe_data(dataset, list(names), usual_list=usual),
        batch=count,
        height=labels.shape[1],
        width=labels.shape[2],
        boundary=BOUNDARY,
        ours=times(seconds["ours"]),
        plain=times(seconds["plain"]),
        **faster.model_dump(exclude={"of_medians"}),
        agreement=float(same),
        sea_steps=_SEA_STEPS,
        sea_seen=_sea_seen(ours, job, channels_last, truth),
        load_before=load_before,
        load_after=load_after,
        others=busy,
        environment=describe_environment(device, time.monotonic() - began),
    )


def plain_sweep(network: PlainSegmenter, images: Tensor, labels: Tensor) -> Tensor:
    """
    Attack anew for each n = 1..7, and label the attacked images.

    Parameters
    ----------
    network : PlainSegmenter
    images : (N, 3, H, W) float
    labels : (N, H, W) int64

    Returns
    -------
    (8, N, H, W) int64
        For n = 0, 1, ..., 7.
    """
    labels_of_each = []
    for steps in range(_STEPS + 1):
        current = images
        for _ in range(steps):
            leaf = current.detach().requires_grad_()
            network.zero_grad()
            loss = F.cross_entropy(network(leaf, ("main",))["main"], labels, ignore_index=IGNORE_INDEX)
            loss.backward()  # type: ignore[no-untyped-call]
            assert leaf.grad is not None
            moved = leaf.detach() + BIM.alpha * leaf.grad.sign()
            current = torch.min(torch.max(moved, images - BIM.epsilon), images + BIM.epsilon).clamp(0, 1)
        with torch.no_grad():
            labels_of_each.append(network(current, ("main",))["main"].argmax(1))
    return torch.stack(labels_of_each)


def _our_sweep(network: Model, images: Tensor, labels: Tensor) -> Tensor:
    points = trajectory(network, images, labels, epsilon=BIM.epsilon, alpha=BIM.alpha, steps=_STEPS, stop_early=True)
    return torch.stack([point.predictions for point in points])


def _sea_seen(network: Model, job: AttackJob, images: Tensor, labels: Tensor) -> float:
    """Share of the images that SEA's forwards would see without early stopping, and do see with it."""
    seen = 0

    def count(images: int) -> None:
        nonlocal seen
        seen += images

    meter = Meter(count)
    most = 3 * (_SEA_STEPS + 3) * len(images)  # of each loss, a forward for each step and for the start of each stage
    meter.allot(most)
    sea(
        meter.watch(network),
        images,
        labels,
        epsilon=_SEA_EPSILON,
        steps=_SEA_STEPS,
        seeds=torch.arange(len(images)),
        class_pixels=torch.from_numpy(count_class_pixels(job.reference, job.dataset).counts),
    )
    return seen / most


def sweep_markdown(result: SweepResult) -> str:
    """
    Write the cost of our sweep beside the plain one.

    Parameters
    ----------
    result : SweepResult
    """
    rows = [
        [name, *(f"{value:.4g}" for value in (t.lower_quartile, t.median, t.upper_quartile))]
        for name, t in (("ours", result.ours), ("plain", result.plain))
    ]
    return (
        f"# The sweep n = 1..7 on {result.checkpoint.method} ({result.checkpoint.architecture})\n\n"
        f"{data_line(result.data)} {result.batch} x {result.height} x {result.width} (images x height x width), "
        f"{len(result.ours.seconds)} sweeps of each in turns after one to warm up.\n\n"
        f"{table(['seconds a sweep', 'lower quartile', 'median', 'upper quartile'], rows)}\n"
        f"Ours is faster by **{result.median:.2f}** ({result.lower_quartile:.2f} to {result.upper_quartile:.2f}; lowest "
        f"{result.lowest:.2f}, highest {result.highest:.2f}): seconds of plain / ours in the same turn, median and quartiles. "
        f"{result.agreement:.2%} of the pixels have the same label in both, over n = 0..7.\n\n"
        f"SEA of {result.sea_steps} steps at 8/255 computed {result.sea_seen:.1%} of its forwards: the rest would have been of "
        f"images without a right pixel.\n\n{quiet_note(result)}"
        f"{result.boundary} {neighbours(result)}\n\n"
        f"{provenance_lines(result.checkpoint, result.environment)}"
    )


if __name__ == "__main__":
    run(main)
