"""Curves of a run, drawn from its log, without pyplot and its global state."""

import io
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

__all__ = ["draw_curves"]

Lines = Sequence[Mapping[str, float]]
F64 = npt.NDArray[np.float64]

# The curves, in this order, with their labels and colours.
_LOSSES = {
    "loss": ("all, as it is minimised", "black"),
    "main": ("main branch", "tab:blue"),
    "auxiliary": ("auxiliary branch", "tab:orange"),
    "mask": ("mask branch", "tab:green"),
    "divergence": ("divergence of the attacked", "tab:red"),
    "deep": ("deep supervision", "tab:purple"),
}
_SHARES = {"mask_share": ("M = 1 (the attack changes)", "tab:green"), "chosen_share": ("p = 1 (sent to f_a)", "tab:orange")}
_SCORES = {"val/clean": ("clean", "tab:blue"), "val/attacked": ("attacked", "tab:red")}
_WINDOWS = 40  # of smoothing, that fit into what was trained so far


def draw_curves(lines: Lines, *, title: str, batch_size: int, per_epoch: int) -> dict[str, bytes]:
    """
    Draw the curves of a log: losses, the shares of the mask, scores.

    The strong line is the running mean of the faint one, the logged values.

    Parameters
    ----------
    lines : sequence of mapping
        Of `log.jsonl`, each with its step.
    batch_size : int
        Images of a step.
    per_epoch : int
        Steps of an epoch.

    Returns
    -------
    dict of str to bytes
        PNGs by name: `losses.png`, `mask.png` of a method with a mask branch, `scores.png` where the network was evaluated.
    """
    drawn: dict[str, bytes] = {}
    for name, curves, what, unit in (
        ("losses.png", _LOSSES, "losses", "nats per pixel"),
        ("mask.png", _SHARES, "the mask", "share of the batch's pixels"),
        ("scores.png", _SCORES, "validation", "mIoU"),
    ):
        columns = {key: _column(lines, key) for key in curves if any(key in line for line in lines)}
        if not columns:
            continue
        figure = Figure(figsize=(9, 4.5), dpi=110)  # a layout engine would draw everything twice
        axes = figure.add_axes((0.085, 0.12, 0.665, 0.8))
        for key, (steps, values) in columns.items():
            _draw(axes, *curves[key], steps, values, marked=name == "scores.png")
        axes.set_title(f"{title}: {what}", loc="left")
        axes.set_xlabel(f"step ({batch_size} images each; an epoch is {per_epoch:,})")
        axes.set_ylabel(unit)
        axes.set_xlim(0, max(line["step"] for line in lines) * 1.01)
        axes.set_ylim(0, _top([values for _, values in columns.values()]))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda step, place: f"{step:,.0f}"))
        if name == "mask.png":
            axes.yaxis.set_major_formatter(PercentFormatter(1))
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, fontsize="small")
        drawn[name] = _png(figure)
    return drawn


def _column(lines: Lines, key: str) -> tuple[F64, F64]:
    rows = [(line["step"], line[key]) for line in lines if key in line]
    table = np.array(rows, np.float64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def _draw(axes: Axes, label: str, colour: str, steps: F64, values: F64, *, marked: bool) -> None:
    if marked:
        axes.plot(steps, values, "o-", color=colour, label=label, markersize=4)
        return
    axes.plot(steps, values, color=colour, alpha=0.3, linewidth=0.8)
    axes.plot(steps, _smooth(values), color=colour, label=label, linewidth=1.6)


def _smooth(values: F64) -> F64:
    """Compute the running mean over a centred window, which is cut off at the ends."""
    half = len(values) // (2 * _WINDOWS)
    sums = np.concatenate([[0.0], values.cumsum()])
    places = np.arange(len(values))
    first, last = (places - half).clip(0), (places + half + 1).clip(max=len(values))
    smoothed: F64 = (sums[last] - sums[first]) / (last - first)
    return smoothed


def _top(curves: Sequence[F64]) -> float:
    """Return the end of the axis; the few values above it, as at the start, are cut off so that the rest can be read."""
    highest = max(float(np.quantile(values, 0.995)) for values in curves)
    return 1.08 * highest or 1.0


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
