"""Engines side by side for readers: Markdown, one HTML page, and the plot of robustness over latency."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from ddcat_bench.compare.comparison import CompareResult
from ddcat_bench.figures import data_uri, figure_png
from ddcat_bench.markdown import fixed, signed, table
from ddcat_bench.templates import render

__all__ = ["compare_html", "compare_markdown", "pareto"]

_MARKS = {"pass": "o", "refuse": "X", "inconclusive": "D"}
_COLOURS = {  # of light and of dark pages
    False: {"pass": "#17803d", "refuse": "#b3261e", "inconclusive": "#9a6700"},
    True: {"pass": "#54c77d", "refuse": "#ff8a80", "inconclusive": "#f0b840"},
}
_HEADS = [
    "engine", "plot", "precision", "verdict", "clean mIoU", "difference", "attacked mIoU", "difference", "ms",
    "share of PyTorch's time", "engine, MiB", "peak memory, MiB", "Pareto-optimal",
]  # fmt: skip
_TEXTS, _VERDICT = 4, 3


def compare_markdown(result: CompareResult) -> str:
    """Write the table, and what it is of."""
    return "\n".join(
        [
            "# Engines side by side\n",
            f"{_about(result)}\n",
            table(_HEADS, _cells(result), texts=_TEXTS),
            "![Robustness over latency](pareto.png)\n",
        ]
    )


def compare_html(result: CompareResult) -> str:
    """Make the page: the plot first, then the table."""
    values = {
        "result": result,
        "about": _about(result),
        "heads": _HEADS,
        "texts": _TEXTS,
        "verdict": _VERDICT,
        "rows": list(zip(result.rows, _cells(result), strict=True)),
        "plots": [data_uri(pareto(result, dark=dark)) for dark in (False, True)],
    }
    return render(Path(__file__).with_name("compare.html"), **values)


def pareto(result: CompareResult, *, dark: bool = False) -> bytes:
    """
    Draw adversarial mIoU over latency: up and to the left is better; the line joins those that none beats.

    The numbers are those of the table, which has the names. Returns bytes: a PNG with a transparent ground.
    """
    ink, soft = ("#e6eaf0", "#9aa6b6") if dark else ("#1d2430", "#5a6575")
    figure = Figure(figsize=(9.5, 5.2), layout="constrained", facecolor="none")
    axes = figure.add_subplot(facecolor="none")
    front = sorted((row.milliseconds, row.attacked) for row in result.rows if row.best)
    if front:
        axes.plot(*zip(*front, strict=True), color=soft, linewidth=1.5, zorder=1)
    for place, row in enumerate(result.rows):
        low, high = row.milliseconds_quartiles
        axes.errorbar(
            row.milliseconds,
            row.attacked,
            xerr=([row.milliseconds - low], [high - row.milliseconds]),
            fmt=_MARKS[row.verdict],
            markersize=10,
            color=_COLOURS[dark][row.verdict],
        )
        axes.annotate(
            str(place + 1), (row.milliseconds, row.attacked), (8, 7), textcoords="offset points", fontsize=13, color=ink
        )
    for verdict, mark in _MARKS.items():
        axes.plot([], [], mark, color=_COLOURS[dark][verdict], markersize=9, label=verdict)
    axes.legend(fontsize=12, labelcolor=ink, frameon=False, ncols=3, loc="lower right", bbox_to_anchor=(1.0, 1.0))
    axes.text(0, 1.03, "\N{NORTH WEST ARROW} better", fontsize=14, color=ink, transform=axes.transAxes)
    axes.set_xlabel("milliseconds of an image (median and quartiles)", color=ink, fontsize=13)
    axes.set_ylabel(f"mIoU, {result.threat}, points", color=ink, fontsize=13)
    axes.tick_params(colors=ink, labelsize=12)
    axes.grid(alpha=0.3)
    axes.margins(0.15, 0.15)
    for side in axes.spines.values():
        side.set_color(ink)
    return figure_png(figure)


def _cells(result: CompareResult) -> Sequence[list[str]]:
    return [
        [
            f"{row.name}, {row.runtime}",
            str(place + 1),
            row.precision,
            row.verdict + ("" if row.budget == "default" else f" ({row.budget})"),
            fixed(row.clean),
            _difference(row.clean_difference, row.clean_interval),
            fixed(row.attacked),
            _difference(row.attacked_difference, row.attacked_interval),
            f"{row.milliseconds:.1f}" + ("" if row.steady else " (unsteady)"),
            f"{row.of_pytorch:.2f}",
            f"{row.engine_bytes / 2**20:.1f}",
            "-" if row.peak_memory is None else f"{row.peak_memory / 2**20:.0f}",
            "yes" if row.best else "",
        ]
        for place, row in enumerate(result.rows)
    ]


def _about(result: CompareResult) -> str:
    several = " The times come from several machines, so do not compare them." if len(result.machines) > 1 else ""
    return (
        f'mIoU is in points, on {result.data}. "Attacked" is {result.threat}, under the attacks of the pool that are worst '
        "for each engine. Differences are from the engine's own PyTorch model, with 90 % intervals. Times are medians for "
        f"batches of one, from uint8 images to uint8 labels, on {' and '.join(result.machines)}.{several} The best engines are "
        'up and to the left in the plot. An engine has "yes" in the last column if no other engine is both faster and more '
        "robust (Pareto). Engines that were refused, or timed on an unsteady machine, are left out. The line in the plot joins "
        "these engines."
    )


def _difference(points: float, interval: tuple[float, float]) -> str:
    return f"{signed(points)} ({signed(interval[0])} to {signed(interval[1])})"
