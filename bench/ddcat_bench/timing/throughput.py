"""Throughput of an engine over the batch size, time over the image size, and its share of the machine's peak; for readers."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from ddcat.bundle import Bundle
from ddcat.engines import Engine
from ddcat.manifest import InputShapes
from ddcat_bench.timing.cpu_contention import watch_contention
from ddcat_bench.timing.interleave import timing
from ddcat_bench.timing.results import Precision, ThroughputResult, ThroughputRow

__all__ = [
    "BATCHES", "SCALES", "Drawing", "draw_throughput", "matrix_product_peak", "measure_throughput", "throughput_table",
]  # fmt: skip

BATCHES = (1, 2, 4, 8)
SCALES = (0.5, 0.75, 1.0, 1.5, 2.0)  # of the sides of the image
_CALLS, _WARM_UP = 10, 2
_WITHIN = 6.0  # seconds for one row; then fewer calls, but five at least
_FEWEST = 5

_DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp64": torch.float64}
_SIDE = {"cpu": 2048, "cuda": 8192}  # of the matrices whose product is timed
_PRODUCTS_WITHIN = 2.0  # seconds

_WIDTH, _LEFT, _BOTTOM, _TOP = 360, 48, 168, 12  # of a drawing

Images = npt.NDArray[np.uint8]


def measure_throughput(
    bundle: Bundle,
    engine: Engine,
    size: tuple[int, int],
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> ThroughputResult:
    """
    Time an engine on batches of 1, 2, 4 and 8 images, and on images of half to twice a size, those of them that it takes.

    `clock` gives seconds.
    """
    shapes, proof = bundle.manifest.shapes, bundle.manifest.main_branch_only
    entry, channels = bundle.manifest.engine, bundle.manifest.preprocessing.channels
    peak = (
        matrix_product_peak("fp32", torch.device("cpu"))
        if entry.effective_precision == "fp32" and "CPU" in entry.provider
        else None
    )
    watch = watch_contention()
    per_pixel = None if proof is None else 2 * proof.multiply_adds / (proof.size[0] * proof.size[1])

    def row(batch: int, height: int, width: int) -> ThroughputRow:
        times = timing(_seconds(engine, (batch, height, width, channels), clock))
        return ThroughputRow(
            batch=batch,
            height=height,
            width=width,
            times=times,
            images_per_second=batch / times.median,
            of_peak=None if peak is None or per_pixel is None else per_pixel * batch * height * width / times.median / peak,
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


def matrix_product_peak(precision: Precision, device: torch.device) -> float:
    """
    Measure the most operations a second that a product of two large square matrices reaches here and now.

    Multiplications and additions are counted one by one.
    """
    side = _SIDE[device.type]
    a, b = (torch.rand(side, side, device=device).to(_DTYPES[precision]) for _ in range(2))
    fastest, until = float("inf"), time.perf_counter() + _PRODUCTS_WITHIN
    a @ b
    while fastest == float("inf") or time.perf_counter() < until:
        _wait(device)
        start = time.perf_counter()
        a @ b
        _wait(device)
        fastest = min(fastest, time.perf_counter() - start)
    return 2 * side**3 / fastest


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


class Drawing(NamedTuple):
    """A curve in its own units: points, and ticks with their texts."""

    title: str
    points: list[tuple[float, float]]
    across: list[tuple[float, str]]
    up: list[tuple[float, str]]


def throughput_table(cost: ThroughputResult) -> tuple[list[str], list[list[str]]]:
    """Return heads and rows: by batch, then by size."""
    heads = ["images", "size", "ms", "quartiles, ms", "images/s", "ms a megapixel", "of the machine's peak", "steady"]
    return heads, [_cells(row) for row in (*cost.batches, *cost.sizes)]


def draw_throughput(cost: ThroughputResult) -> list[Drawing]:
    """Draw throughput over the batch, and time over the size; a curve of one point is left out."""
    curves: list[tuple[str, list[tuple[float, float, str]]]] = [
        ("images a second, by the batch", [(row.batch, row.images_per_second, str(row.batch)) for row in cost.batches]),
        (
            "milliseconds an image, by its size",
            [
                (row.height * row.width / 1e6, 1000 * row.times.median / row.batch, f"{row.height}x{row.width}")
                for row in cost.sizes
            ],
        ),
    ]
    return [_drawing(title, points) for title, points in curves if len(points) > 1]


def _drawing(title: str, points: Sequence[tuple[float, float, str]]) -> Drawing:
    right, top = max(x for x, _, _ in points), max(y for _, y, _ in points)

    def place(x: float, y: float) -> tuple[float, float]:
        return round(_LEFT + (_WIDTH - _LEFT - 40) * x / right, 1), round(_BOTTOM - (_BOTTOM - _TOP) * y / top, 1)

    return Drawing(
        title=title,
        points=[place(x, y) for x, y, _ in points],
        across=[(place(x, 0)[0], text) for x, _, text in points],
        up=[(place(0, top * share)[1], f"{top * share:.0f}" if top >= 1000 else f"{top * share:.3g}") for share in (0.5, 1.0)],
    )


def _cells(row: ThroughputRow) -> list[str]:
    times, megapixels = row.times, row.batch * row.height * row.width / 1e6
    return [
        str(row.batch),
        f"{row.height}x{row.width}",
        f"{1000 * times.median:.1f}",
        f"{1000 * times.lower_quartile:.1f} to {1000 * times.upper_quartile:.1f}",
        f"{row.images_per_second:.2f}",
        f"{1000 * times.median / megapixels:.0f}",
        "-" if row.of_peak is None else f"{row.of_peak:.0%}",
        "yes" if times.stable else "no",
    ]
