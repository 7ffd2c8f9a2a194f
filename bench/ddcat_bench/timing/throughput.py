"""Throughput of an engine over the batch size, time over the image size, and its share of the machine's peak."""

import time
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import torch

from ddcat.bundle import Bundle
from ddcat.engines import Engine
from ddcat.manifest import InputShapes
from ddcat_bench.timing.cpu_contention import watch_contention
from ddcat_bench.timing.interleave import timing
from ddcat_bench.timing.peak_flops import matrix_product_peak
from ddcat_bench.timing.results import ThroughputResult, ThroughputRow

__all__ = ["BATCHES", "SCALES", "ThroughputResult", "ThroughputRow", "measure_throughput"]

BATCHES = (1, 2, 4, 8)
SCALES = (0.5, 0.75, 1.0, 1.5, 2.0)  # of the sides of the image
_CALLS, _WARM_UP = 10, 2
_WITHIN = 6.0  # seconds for one row; then fewer calls, but five at least
_FEWEST = 5

Images = npt.NDArray[np.uint8]


def measure_throughput(
    bundle: Bundle,
    engine: Engine,
    size: tuple[int, int],
    *,
    clock: Callable[[], float] = time.perf_counter,
    advance: Callable[[int], None] = lambda rows: None,
) -> ThroughputResult:
    """
    Time an engine on batches of 1, 2, 4 and 8 images, and on images of half to twice the size, those of them that it takes.

    Parameters
    ----------
    bundle : Bundle
    engine : Engine
        Opened from it.
    size : (height, width)
        That it takes.
    clock : callable
        In seconds.
    advance : callable, optional
        Called after each row.
    """
    shapes, proof = bundle.manifest.shapes, bundle.manifest.main_branch_only
    entry = bundle.manifest.engine
    peak = (
        matrix_product_peak("fp32", torch.device("cpu"))
        if entry.effective_precision == "fp32" and _on_cpu(entry.provider)
        else None
    )
    watch = watch_contention()
    per_pixel = 2 * proof.multiply_adds / (proof.size[0] * proof.size[1])

    def row(batch: int, height: int, width: int) -> ThroughputRow:
        times = timing(_seconds(engine, (batch, height, width, 3), clock))
        advance(1)
        work = per_pixel * batch * height * width
        return ThroughputRow(
            batch=batch,
            height=height,
            width=width,
            times=times,
            images_per_second=batch / times.median,
            of_peak=None if peak is None else work / times.median / peak,
        )

    batches = tuple(row(batch, *size) for batch in BATCHES if batch in shapes.batch)
    smallest = shapes.batch.minimum
    sizes = tuple(row(smallest, *other) for other in _sizes(shapes, size))
    threads = engine.description.get("threads")
    return ThroughputResult(
        threads=threads if isinstance(threads, int) else None,
        matrix_product_peak=peak,
        batches=batches,
        sizes=sizes,
        others=watch(),
    )


def _on_cpu(provider: str) -> bool:
    return "CPU" in provider


def _sizes(shapes: InputShapes, size: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """Return the sizes of a ladder, or the scales of one size that the engine takes."""
    if shapes.sizes is not None:
        yield from shapes.sizes
        return
    for scale in SCALES:
        height, width = (round(side * scale) for side in size)
        if height in shapes.height and width in shapes.width:
            yield height, width


def _seconds(engine: Engine, shape: tuple[int, int, int, int], clock: Callable[[], float]) -> list[float]:
    generator = np.random.default_rng(0)
    images: Images = generator.integers(0, 256, shape, dtype=np.uint8)
    for _ in range(_WARM_UP):
        engine.infer(images)
    durations: list[float] = []
    while len(durations) < _CALLS and (len(durations) < _FEWEST or sum(durations) < _WITHIN):
        start = clock()
        engine.infer(images)
        durations.append(clock() - start)
    return durations
