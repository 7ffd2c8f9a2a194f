"""Engines side by side for readers: Markdown, one HTML page, and the plot of latency over robustness."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from ddcat_bench.attack.plots import data_uri, figure_png
from ddcat_bench.compare.engines import CompareResult
from ddcat_bench.markdown import table
from ddcat_bench.pages import render

__all__ = ["compare_html", "compare_markdown", "pareto"]

_MARKS = {"pass": "o", "refuse": "X", "inconclusive": "D"}
_HEADS = [
    "engine", "precision", "verdict", "clean mIoU", "difference", "attacked mIoU", "difference", "ms", "of PyTorch",
    "engine, MiB", "peak, MiB", "Pareto",
]  # fmt: skip
_TEXTS = 3


def compare_markdown(result: CompareResult) -> str:
    """Write the table, and what it is of."""
    return "\n".join(
        [
            "# Engines side by side\n",
            f"{_about(result)}\n",
            table(_HEADS, _cells(result), texts=_TEXTS),
            "![Latency over robustness](pareto.png)\n",
        ]
    )


def compare_html(result: CompareResult) -> str:
    """Make the page: the plot first, then the table."""
    values = {
        "result": result,
        "about": _about(result),
        "heads": _HEADS,
        "rows": list(zip(result.rows, _cells(result), strict=True)),
        "plots": [data_uri(pareto(result, dark=dark)) for dark in (False, True)],
    }
    return render(Path(__file__).with_name("compare.html"), values)


def pareto(result: CompareResult, *, dark: bool = False) -> bytes:
    """
    Draw latency over adversarial mIoU: up and to the left is better; the line joins those that none beats.

    Returns
    -------
    bytes
        A PNG with a transparent ground.
    """
    ink = "#e6eaf0" if dark else "#1d2430"
    figure = Figure(figsize=(9.5, 4.5), layout="constrained", facecolor="none")
    axes = figure.add_subplot(facecolor="none")
    for place, row in enumerate(result.rows):
        low, high = row.milliseconds_quartiles
        axes.errorbar(
            row.milliseconds,
            row.attacked,
            xerr=([row.milliseconds - low], [high - row.milliseconds]),
            fmt=_MARKS[row.verdict],
            markersize=8,
            color=f"C{place % 10}",
            label=f"{place + 1}  {row.name}, {row.precision}",
        )
        axes.annotate(
            str(place + 1), (row.milliseconds, row.attacked), (6, 6), textcoords="offset points", fontsize=8, color=ink
        )
    figure.legend(loc="outside right upper", fontsize=8, labelcolor=ink, frameon=False)
    front = sorted((row.milliseconds, row.attacked) for row in result.rows if row.best)
    if front:
        axes.plot(*zip(*front, strict=True), color=ink, linewidth=1, alpha=0.5)
    marks = ", ".join(
        f"{mark} {verdict}" for verdict, mark in (("pass", "circle"), ("refuse", "cross"), ("inconclusive", "diamond"))
    )
    axes.set_title(f"{result.threat}; {result.images} images; {marks}", fontsize=9, color=ink)
    axes.set_xlabel("milliseconds of an image (median and quartiles)", color=ink)
    axes.set_ylabel("mIoU under attack, points", color=ink)
    axes.tick_params(colors=ink)
    axes.grid(alpha=0.3)
    axes.margins(0.15, 0.15)
    for side in axes.spines.values():
        side.set_color(ink)
    return figure_png(figure)


def _cells(result: CompareResult) -> Sequence[list[str]]:
    return [
        [
            f"{row.name}, {row.runtime}",
            row.precision,
            row.verdict + ("" if row.budget == "default" else f" ({row.budget})"),
            f"{row.clean:.2f}",
            _difference(row.clean_difference, row.clean_interval),
            f"{row.attacked:.2f}",
            _difference(row.attacked_difference, row.attacked_interval),
            f"{row.milliseconds:.1f}" + ("" if row.steady else " (unsteady)"),
            f"{row.of_pytorch:.2f}",
            f"{row.engine_bytes / 2**20:.1f}",
            "-" if row.peak_memory is None else f"{row.peak_memory / 2**20:.0f}",
            "yes" if row.best else "",
        ]
        for row in result.rows
    ]


def _about(result: CompareResult) -> str:
    several = "; the times are of several machines and do not compare" if len(result.machines) > 1 else ""
    return (
        f"Points of mIoU on {result.data}; attacked: {result.threat}, each engine under the attacks of its pool that are worst "
        "for it; differences from its own PyTorch model with 90 % intervals. Times are medians of batches of one, from uint8 "
        f"images to uint8 labels, on {' and '.join(result.machines)}{several}. Pareto: of those that were not refused and were "
        "timed on a steady machine, none is both quicker and more robust."
    )


def _difference(points: float, interval: tuple[float, float]) -> str:
    return f"{points:+.2f} ({interval[0]:+.2f} to {interval[1]:+.2f})"
