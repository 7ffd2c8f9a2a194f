"""`ddcat-bench speed`: an engine's time beside that of the PyTorch model that it was made from, in one process."""

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from ddcat.bundle import Bundle
from ddcat.manifest import Range
from ddcat_bench.errors import BenchError
from ddcat_bench.results import SpeedResult, Times, Timing
from ddcat_bench.subjects import describe_bundle, describe_checkpoint, describe_environment, main_branch
from ddcat_serve.engines import Engine
from ddcat_train.attacks import Model
from ddcat_train.checkpoints import Checkpoint
from ddcat_train.data import Dataset

__all__ = ["BOUNDARY", "Inputs", "draw_inputs", "interleave", "measure", "ratios", "times", "timing", "torch_labels"]

BOUNDARY = (
    "Engine only: uint8 NHWC array to uint8 labels, both in memory; no decoding, resizing or transport. The same for PyTorch: "
    "eager, fp32, channels last, the main branch alone."
)

_FEWEST = 10  # repeats: below it, quartiles and windows say nothing
_WARM_UP = 3
_WINDOWS = 5  # that the repeats are divided into; the last three tell whether the times are stable
_STABLE = 0.10

Images = npt.NDArray[np.uint8]


class Inputs(NamedTuple):
    """What is timed on."""

    batches: list[Images]  # each (N, H, W, 3)
    description: str


def measure(
    bundle: Bundle,
    engine: Engine,
    checkpoint: Checkpoint,
    inputs: Inputs,
    *,
    threads: int,
    clock: Callable[[], float] = time.perf_counter,
    advance: Callable[[int], None] = lambda pairs: None,
) -> SpeedResult:
    """
    Time an engine and PyTorch on a CPU, in turns.

    Parameters
    ----------
    bundle : Bundle
    engine : Engine
        Opened from it, with `threads`.
    checkpoint : Checkpoint
        That it was made from.
    inputs : Inputs
        One batch for each repeat, and some before them to warm up.
    threads : int
        Of PyTorch.
    clock : callable
        In seconds.
    advance : callable, optional
        Is told the number of pairs that were timed.

    Raises
    ------
    BenchError
        Where the engine runs with another number of threads.
    """
    if engine.description.get("threads") != threads:
        raise BenchError(f"the engine runs with {engine.description.get('threads')} threads, PyTorch with {threads}")
    began = time.monotonic()
    cpu = torch.device("cpu")
    with _torch_threads(threads):
        network = main_branch(checkpoint, cpu)
        pairs = interleave(
            lambda images: engine.infer(images).labels,
            lambda images: torch_labels(network, images),
            inputs.batches,
            warm_up=_WARM_UP,
            clock=clock,
            advance=advance,
        )
        environment = describe_environment(cpu, time.monotonic() - began)
    first, second = timing([pair[0] for pair in pairs]), timing([pair[1] for pair in pairs])
    of_medians, of_pairs = ratios(pairs)
    batch, height, width, _ = inputs.batches[0].shape
    return SpeedResult(
        bundle=describe_bundle(bundle, engine),
        checkpoint=describe_checkpoint(checkpoint),
        boundary=BOUNDARY,
        inputs=inputs.description,
        batch=batch,
        height=height,
        width=width,
        threads=threads,
        warm_up=_WARM_UP,
        engine=first,
        pytorch=second,
        ratio_of_medians=of_medians,
        median_of_ratios=of_pairs,
        environment=environment,
    )


def interleave(
    first: Callable[[Images], object],
    second: Callable[[Images], object],
    batches: Sequence[Images],
    *,
    warm_up: int,
    clock: Callable[[], float] = time.perf_counter,
    advance: Callable[[int], None] = lambda pairs: None,
) -> list[tuple[float, float]]:
    """
    Time two functions in turns on the same batches: what slows the machine for a while slows both.

    Parameters
    ----------
    first, second : callable
        Take a batch and return when its result is in memory.
    batches : sequence of (N, H, W, 3) uint8
    warm_up : int
        Number of batches at the start whose times are not kept.
    clock : callable
        In seconds.
    advance : callable, optional
        Is told the number of pairs that were timed.

    Returns
    -------
    list of (float, float)
        Seconds of both on each batch; none is left out.
    """
    pairs = []
    for batch in batches:
        start = clock()
        first(batch)
        between = clock()
        second(batch)
        pairs.append((between - start, clock() - between))
        advance(1)
    return pairs[warm_up:]


def timing(seconds: Sequence[float]) -> Timing:
    """
    Summarise times, none of which is left out.

    There must be five at least. The windows of the stability note are fifths of the times; the last three must have medians
    within 10 % of the lowest. Only quartiles are given: a high percentile needs more calls than a run makes (64 for p90, 662
    for p99).
    """
    size = len(seconds) // _WINDOWS
    last = [statistics.median(seconds[len(seconds) - (index + 1) * size : len(seconds) - index * size]) for index in range(3)]
    return Timing(**dict(times(seconds)), stable=max(last) <= (1 + _STABLE) * min(last))


def times(seconds: Sequence[float]) -> Times:
    """Summarise times, none of which is left out."""
    lower, median, upper = np.quantile(seconds, (0.25, 0.5, 0.75)).tolist()
    return Times(seconds=tuple(seconds), median=median, lower_quartile=lower, upper_quartile=upper)


def ratios(pairs: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Ratio of the medians, and median of the ratios, of first / second."""
    firsts, seconds = zip(*pairs, strict=True)
    return statistics.median(firsts) / statistics.median(seconds), statistics.median(a / b for a, b in pairs)


def torch_labels(model: Model, images: Images) -> Images:
    """
    Label images with PyTorch at the boundary of an engine.

    Parameters
    ----------
    model : callable
    images : (N, H, W, 3) uint8

    Returns
    -------
    (N, H, W) uint8
    """
    with torch.inference_mode():
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2)  # (N, H, W, 3) -> (N, 3, H, W), which is channels last
        labels: Images = model(pixels.float() / 255).argmax(1).to(torch.uint8).numpy()
        return labels


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

    Parameters
    ----------
    bundle : Bundle
    dataset : Dataset or None
        None where the data is not there.
    repeats, batch : int
    size : (height, width), optional
        That of the engine if it takes only one, else that of the data set's first image.

    Raises
    ------
    BenchError
        Where there are too few repeats, there is no size to take, or the engine does not take it.
    """
    if repeats < _FEWEST:
        raise BenchError(f"--repeats {repeats}: {_FEWEST} or more would be right")
    shapes = bundle.manifest.shapes
    size = size or _only_size(shapes.height, shapes.width) or (dataset.read(0).labels.shape if dataset else None)
    if size is None:
        raise BenchError(f"the data of {bundle.path} is not there to take a size from: name one with --size HEIGHTxWIDTH")
    if batch not in shapes.batch or size[0] not in shapes.height or size[1] not in shapes.width:
        raise BenchError(f"{bundle.path} does not take batches of {batch} images of {size[0]}x{size[1]} (height x width)")
    calls = repeats + _WARM_UP
    found = _images(dataset, size, calls * batch) if dataset else []
    if dataset and found:
        batches = [np.stack([found[(call * batch + k) % len(found)] for k in range(batch)]) for call in range(calls)]
        return Inputs(batches, f"{len(found)} images of {dataset.name} {dataset.split}, in turns")
    generator = np.random.default_rng(0)
    return Inputs(
        [generator.integers(0, 256, (batch, *size, 3), dtype=np.uint8) for _ in range(calls)],
        f"{calls * batch} images of uniform noise, seed 0",
    )


def _images(dataset: Dataset, size: tuple[int, int], most: int) -> list[Images]:
    samples = (dataset.read(index) for index in range(min(most, len(dataset))))
    return [sample.image for sample in samples if sample.labels.shape == size]


def _only_size(height: Range, width: Range) -> tuple[int, int] | None:
    fixed = height.minimum == height.maximum and width.minimum == width.maximum
    return (height.minimum, width.minimum) if fixed else None


@contextlib.contextmanager
def _torch_threads(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
