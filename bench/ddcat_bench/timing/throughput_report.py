"""An engine's cost for readers: tables, and drawings for a page."""

from collections.abc import Sequence
from typing import NamedTuple

from ddcat_bench.markdown import table
from ddcat_bench.timing.throughput import ThroughputResult, ThroughputRow

__all__ = ["THROUGHPUT_HEADS", "Drawing", "draw_throughput", "throughput_cells", "throughput_markdown"]

THROUGHPUT_HEADS = ["images", "size", "ms", "quartiles, ms", "images/s", "ms a megapixel", "of the machine's peak", "steady"]
_WIDTH, _LEFT, _BOTTOM, _TOP = 360, 48, 168, 12


class Drawing(NamedTuple):
    """A curve in its own units: points, and ticks with their texts."""

    title: str
    points: list[tuple[float, float]]
    across: list[tuple[float, str]]
    up: list[tuple[float, str]]


def throughput_markdown(cost: ThroughputResult) -> str:
    """Write both tables as one."""
    return table(THROUGHPUT_HEADS, throughput_cells(cost), texts=0)


def throughput_cells(cost: ThroughputResult) -> list[list[str]]:
    """Return the cells of all rows: by batch, then by size."""
    return [_cells(row) for row in (*cost.batches, *cost.sizes)]


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
