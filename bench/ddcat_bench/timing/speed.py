"""`ddcat speed`: an engine's time and memory beside those of PyTorch, on the same images; and its report."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from ddcat.bundle import MANIFEST, Bundle
from ddcat.engines import Engine
from ddcat.error_text import first_line
from ddcat.manifest import DimRange
from ddcat_bench.describe import describe_bundle, describe_environment, describe_reference
from ddcat_bench.errors import BenchError
from ddcat_bench.templates import render
from ddcat_bench.timing.cpu_contention import watch_contention
from ddcat_bench.timing.interleave import interleave, ratio, timing
from ddcat_bench.timing.pytorch_models import EAGER, Images, torch_labels, torch_settings
from ddcat_bench.timing.results import Ratio, SpeedEntry, SpeedRatio, SpeedResult, Watched
from ddcat_bench.timing.serving_memory import MEMORY, ServedName, Serving
from ddcat_train.data import Dataset
from ddcat_train.reference import Reference

__all__ = ["BOUNDARY", "Inputs", "draw_inputs", "faster", "measure", "mebibytes", "neighbours", "speed_markdown"]

BOUNDARY = (
    "Times are from a uint8 NHWC array to uint8 labels, both in the host's memory, without decoding, resizing or transport. "
    'PyTorch computes in fp32, and eagerly unless it says compiled. "Original" is the graph of the paper\'s code: plain layers '
    'in contiguous memory, a concatenated pyramid, and the main head alone. "Main branch" is our network, which computes the '
    "same numbers faster, in channels-last memory. All take turns in one process, and each turn begins with another one."
)

_FEWEST = 10  # repeats: below it, quartiles and windows say nothing
_WARM_UP = 3


class Inputs(NamedTuple):
    """The batches that are timed."""

    batches: list[Images]  # each (N, H, W, 3)
    description: str


def measure(
    bundle: Bundle,
    engine: Engine,
    reference: Reference,
    inputs: Inputs,
    *,
    threads: int,
    peak: Callable[[Serving], int | None],
    compiled: bool = False,
    clock: Callable[[], float] = time.perf_counter,
    advance: Callable[[int], None] = lambda calls: None,
) -> SpeedResult:
    """
    Time an engine and PyTorch in turns, then take the memory of each in a process of its own.

    PyTorch computes where the engine does: on the CPU, or on a GPU.

    Parameters
    ----------
    engine : Engine
        Opened from it, with `threads`.
    reference : Reference
        The model that the bundle was made from.
    inputs : Inputs
        One batch for each repeat, and some before them to warm up.
    threads : int
        Threads of PyTorch.
    peak : callable
        Gives the peak memory of a process that serves: `serving_peak`.
    compiled : bool
        Time `torch.compile` of the main branch, too.
    clock : callable
        In seconds.
    advance : callable, optional
        Called with the number of calls that were timed.

    Raises
    ------
    BenchError
        If the engine runs with another number of threads, or PyTorch cannot compile here.
    """
    used = engine.description.get("threads")
    if used not in (threads, None):
        raise BenchError(f"the engine runs with {used} threads, expected {threads} as PyTorch has")
    began, load_before = time.monotonic(), os.getloadavg()[0]
    device = torch.device("cpu" if "CPU" in bundle.manifest.engine.provider else "cuda")
    names: list[ServedName] = ["engine", "original", "main branch"]
    if compiled:
        names.append("compiled")
    with torch_settings(threads):
        contenders: dict[ServedName, Callable[[Images], Images]] = {
            name: (lambda images: engine.infer(images).labels) if name == "engine" else _labels(name, reference, device)
            for name in names
        }
        if compiled:
            _compile_now(contenders["compiled"], inputs.batches[0])
        others = watch_contention()
        turns = interleave(contenders, inputs.batches, clock=clock, advance=advance)[_WARM_UP:]
        busy, load_after = others(), os.getloadavg()[0]
        environment = describe_environment(device, time.monotonic() - began)
    shape = inputs.batches[0].shape[:3]
    batch, height, width = shape
    seconds = {name: [turn[name] for turn in turns] for name in names}
    peaks = {
        name: peak(
            Serving(name, str(bundle.path), device.type, threads, shape)
            if name == "engine"
            else Serving(name, str(reference.path), device.type, threads, shape, str(bundle.path / MANIFEST))
        )
        for name in names
    }
    return SpeedResult(
        bundle=describe_bundle(bundle, engine),
        checkpoint=describe_reference(reference),
        engine_bytes=bundle.manifest.files[bundle.manifest.engine.file].bytes,
        parameter_bytes=_parameter_bytes(reference),
        boundary=BOUNDARY,
        memory=MEMORY,
        inputs=inputs.description,
        batch=batch,
        height=height,
        width=width,
        threads=threads,
        warm_up=_WARM_UP,
        contenders=tuple(SpeedEntry(name=n, times=timing(seconds[n]), peak_memory=peaks[n]) for n in names),
        ratios=tuple(SpeedRatio(baseline=n, **dict(ratio(seconds[n], seconds["engine"]))) for n in names if n != "engine"),
        load_before=load_before,
        load_after=load_after,
        others=busy,
        environment=environment,
    )


def _labels(name: str, reference: Reference, device: torch.device) -> Callable[[Images], Images]:
    network = EAGER[name](reference, device)
    return lambda images: torch_labels(network, images, device)


def _compile_now(label: Callable[[Images], Images], images: Images) -> None:
    try:
        label(images)
    except Exception as cause:  # of the compiler or of what it calls: they share no base
        reason = first_line(cause)
        raise BenchError(
            f"PyTorch cannot compile the main branch here: {reason}: install a C++ compiler, or leave --compiled out"
        ) from cause


def _parameter_bytes(reference: Reference) -> int:
    spare = ("heads.auxiliary.", "heads.mask.", "heads.deep.")
    main = (values for key, values in reference.segmenter().state_dict().items() if not key.startswith(spare))
    return sum(4 * values.numel() for values in main if values.is_floating_point())


def draw_inputs(
    bundle: Bundle,
    dataset: Dataset | None,
    *,
    repeats: int,
    batch: int,
    size: tuple[int, int] | None = None,
) -> Inputs:
    """
    Give another batch for each repeat: of the data set's images that have the size, or of seeded noise where there are none.

    The size is the engine's only one by default, else that of the data set's first image. Raises BenchError if there are too
    few repeats, there is no size to take, or the engine does not take it.
    """
    if repeats < _FEWEST:
        raise BenchError(f"--repeats {repeats}: use {_FEWEST} or more")
    shapes = bundle.manifest.shapes
    size = size or _only_size(shapes.height, shapes.width) or (dataset.read(0).labels.shape if dataset else None)
    if size is None:
        raise BenchError(f"the data of {bundle.path} is missing, and the size of images comes from it: use --size HEIGHTxWIDTH")
    ladder = shapes.sizes is None or tuple(size) in shapes.sizes
    if batch not in shapes.batch or size[0] not in shapes.height or size[1] not in shapes.width or not ladder:
        raise BenchError(
            f"{bundle.path} does not take batches of {batch} images of {size[0]}x{size[1]} (height x width): use another "
            "--batch or --size"
        )
    calls = repeats + _WARM_UP
    images = _images(dataset, size, calls * batch) if dataset else []
    if dataset and images:
        batches = [np.stack([images[(call * batch + k) % len(images)] for k in range(batch)]) for call in range(calls)]
        return Inputs(batches, f"{len(images)} images of {dataset.name} {dataset.split}, in turns")
    generator, channels = np.random.default_rng(0), bundle.manifest.preprocessing.channels
    return Inputs(
        [generator.integers(0, 256, (batch, *size, channels), dtype=np.uint8) for _ in range(calls)],
        f"{calls * batch} images of uniform noise, seed 0",
    )


def _images(dataset: Dataset, size: tuple[int, int], most: int) -> list[Images]:
    samples = (dataset.read(index) for index in range(min(most, len(dataset))))
    return [sample.image for sample in samples if sample.labels.shape == size]


def _only_size(height: DimRange, width: DimRange) -> tuple[int, int] | None:
    fixed = height.minimum == height.maximum and width.minimum == width.maximum
    return (height.minimum, width.minimum) if fixed else None


def speed_markdown(result: SpeedResult) -> str:
    """Write an engine's time and memory beside PyTorch's."""
    ratios = {ratio.baseline: faster(ratio) for ratio in result.ratios}
    return render(
        Path(__file__).with_name("speed.md"), result=result, ratios=ratios, mebibytes=mebibytes, neighbours=neighbours(result)
    )


def neighbours(result: Watched) -> str:
    """Write how busy other processes kept the machine."""
    if result.others is None:
        return f"Load average: {result.load_before:.2f} before, {result.load_after:.2f} after."
    return f"Other processes kept {result.others:.2f} cores busy meanwhile."


def faster(ratio: Ratio) -> str:
    """Write how many times as fast: median and quartiles."""
    return f"**{ratio.median:.2f}** ({ratio.lower_quartile:.2f} to {ratio.upper_quartile:.2f})"


def mebibytes(size: int | None) -> str:
    """Write a size in MiB, or that it is not known."""
    return "-" if size is None else f"{size / 2**20:.0f}"
