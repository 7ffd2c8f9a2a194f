"""Tables and a plot of such perturbations, for the reports of `ddcat attack` and `ddcat gate`."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from ddcat_bench.bootstrap import FEWEST_UNITS, interval, scheme_of
from ddcat_bench.figures import figure_png
from ddcat_bench.markdown import number, signed, table
from ddcat_bench.perturbation.results import BANDS, PerturbationRow
from ddcat_bench.result_schema import DataEntry

__all__ = [
    "NOT_CLAIMED",
    "Sheet",
    "perturbation_brief",
    "perturbation_markdown",
    "perturbation_plot",
    "perturbation_sheets",
    "row_interval",
    "strongest",
]

NOT_CLAIMED = {
    "L2": "what other or larger norms do, or that no attack of this norm does more",
    "universal": "what a perturbation does that is made for one image, or learnt on many more images",
    "patch": "what printed patches, other sizes, several patches, or a patch for one place in one scene do",
    "minimal norm": "that no smaller perturbation does it: the least norm may be far smaller",
}
_MAKERS = {"model": "PyTorch model", "twin": "twin", None: "-"}


class Sheet(NamedTuple):
    """A table: its first `texts` columns are texts, the others numbers."""

    title: str
    heads: list[str]
    rows: list[list[str]]
    texts: int


def row_interval(row: PerturbationRow, data: DataEntry) -> tuple[float, float] | None:
    """Bound the mIoU of the engine, or of a model without one: 95 % of the draws; None where the images are too few."""
    scheme = scheme_of(data.name, [data.names[place] for place in row.places], data.clips)
    scores = row.scores if row.engine is None else row.engine
    return interval(scores.array(), scheme) if scheme.units >= FEWEST_UNITS else None


def strongest(rows: Sequence[PerturbationRow]) -> list[PerturbationRow]:
    """Of each threat and bound, return the attack that leaves the engine, or a model without one, the least mIoU."""
    kinds = dict.fromkeys((row.threat, row.bound) for row in rows if not row.control)

    return [min((row for row in rows if (row.threat, row.bound) == kind and not row.control), key=_left) for kind in kinds]


def perturbation_sheets(rows: Sequence[PerturbationRow], data: DataEntry) -> list[Sheet]:
    """Make the tables: scores of all, accuracy by the distance from a patch, and norms that were needed."""
    if not rows:
        return []
    beside = rows[0].engine is not None
    heads = ["perturbation", "attack", "bound", *(["made on"] if beside else []), "images"]
    texts = len(heads) - 1
    heads += ["PyTorch model", "engine", "difference"] if beside else ["mIoU", "pixel accuracy"]
    sheets = [Sheet("What they leave", [*heads, "95 % interval"], [_cells(row, data) for row in rows], texts)]
    patches = [row for row in rows if row.bands]
    if patches:
        ends = [*(f"up to {far:g}" for far in BANDS[1:]), "beyond"]
        cells = [
            [row.attack, row.limit, *([_MAKERS[row.made_on]] if beside else []), *(number(band.accuracy) for band in row.bands)]
            for row in patches
        ]
        first = ["patch", "share", *(["made on"] if beside else [])]
        what = "Pixel accuracy of the engine" if beside else "Pixel accuracy"
        sheets.append(Sheet(f"{what} by the distance from a patch, in its sides", [*first, *ends], cells, len(first)))
    least = [row for row in rows if row.norms is not None]
    if least:
        norms = [[row.attack, *([_MAKERS[row.made_on]] if beside else []), *_norm_cells(row)] for row in least]
        first = ["attack", *(["made on"] if beside else [])]
        numbers = ["images", "found for", "median L2", "median L-infinity"]
        sheets.append(Sheet("Norm that makes 99 % of the labelled pixels wrong", [*first, *numbers], norms, len(first)))
    return sheets


def _cells(row: PerturbationRow, data: DataEntry) -> list[str]:
    name = f"control: {row.attack}" if row.control else row.attack
    if row.threat == "clean":
        name = "clean"
    cells = [row.threat if row.threat != "clean" else "none", name, row.limit]
    bounds = row_interval(row, data)
    between = "-" if bounds is None else f"{bounds[0]:.3f} to {bounds[1]:.3f}"
    if row.engine is None:
        return [*cells, str(len(row.places)), number(row.scores.miou), number(row.scores.pixel_accuracy), between]
    difference = signed(row.engine.miou - row.scores.miou, 3)
    numbers = [str(len(row.places)), number(row.scores.miou), number(row.engine.miou), difference, between]
    return [*cells, _MAKERS[row.made_on], *numbers]


def _norm_cells(row: PerturbationRow) -> list[str]:
    assert row.norms is not None
    medians = row.norms.medians()
    shown = ["-", "-"] if medians is None else [f"{medians[0]:.2f}", f"{255 * medians[1]:.1f}/255"]
    return [str(len(row.places)), str(row.norms.found), *shown]


def perturbation_markdown(rows: Sequence[PerturbationRow], data: DataEntry) -> str:
    """Write the tables, and what none of them claims."""
    parts = [
        f"{sheet.title}:\n\n{table(sheet.heads, sheet.rows, texts=sheet.texts)}" for sheet in perturbation_sheets(rows, data)
    ]
    return "\n".join([*parts, *_notes(rows)])


def _notes(rows: Sequence[PerturbationRow]) -> Iterator[str]:
    if not rows:
        return
    engine = " No gradient and no query of the engine is used: it only labels them." if rows[0].engine is not None else ""
    yield (
        f"All images are in 8 bits, as a server receives them.{engine} L2 is the norm over all values of an image in [0, 1] "
        "units. A universal perturbation is one perturbation for all images. It is learnt on each half of the images and "
        "tested on the other half, and so is a patch. Under a patch, only the pixels outside of it count. They do not show:\n"
    )
    yield "\n".join(f"- {threat}: {text}" for threat, text in NOT_CLAIMED.items())


def perturbation_brief(rows: Sequence[PerturbationRow]) -> list[list[str]]:
    """Return a row for the strongest attack of each kind, with the lowest of its controls: name, what is left of each."""
    cells = []
    for row in strongest(rows):
        controls = [one for one in rows if (one.threat, one.bound, one.control) == (row.threat, row.bound, True)]
        left = [number(row.scores.miou), *([number(row.engine.miou)] if row.engine is not None else [])]
        bound = "" if row.limit == "-" else f", {row.limit}"
        cells.append([f"{row.threat}, {row.attack}{bound}", *left, number(min(_left(one) for one in controls))])
    return cells


def _left(row: PerturbationRow) -> float:
    """The engine's mIoU, or that of the model where there is no engine."""
    return row.scores.miou if row.engine is None else row.engine.miou


def perturbation_plot(rows: Sequence[PerturbationRow], data: DataEntry) -> bytes:
    """Draw what each leaves, its controls in grey, and pixel accuracy by the distance from a patch. A PNG."""
    figure = Figure(figsize=(11, max(3.5, 0.3 * len(rows))), layout="constrained")
    axes, near = figure.subplots(1, 2, width_ratios=(3, 2))
    for place, row in enumerate(rows):
        bounds = row_interval(row, data)
        value = row.scores.miou
        ends = (value, value) if bounds is None else bounds
        reach = [[max(0.0, value - ends[0])], [max(0.0, ends[1] - value)]]
        axes.errorbar(value, place, xerr=reach, fmt="o", capsize=2, color="grey" if row.control else "C3")
    axes.set_yticks(range(len(rows)), [_name(row) for row in rows], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(-0.02, 1)
    axes.set_xlabel("mIoU of the PyTorch model; grey: controls; bars: 95 % of the bootstrap draws")
    axes.grid(alpha=0.3)
    for row in (row for row in rows if row.bands):
        shares = [np.nan if band.accuracy is None else band.accuracy for band in row.bands]
        style = {"no patch": ":", "random patch": "--", "grey patch": "-."}.get(row.attack, "-")
        near.plot(range(len(shares)), shares, style, marker=".", label=_name(row))
    near.set_xticks(range(len(BANDS)), [*(f"up to {far:g}" for far in BANDS[1:]), "beyond"])
    near.set_xlabel("distance from the patch, in its sides")
    near.set_ylabel("pixel accuracy")
    near.set_ylim(0, 1.02)
    near.grid(alpha=0.3)
    if near.lines:
        near.legend(fontsize=7)
    figure.suptitle(f"{data.name} {data.split}, {len(data.names)} images, in 8 bits", fontsize=9)
    return figure_png(figure)


def _name(row: PerturbationRow) -> str:
    if row.threat == "clean":
        return "clean"
    where = f", {_MAKERS[row.made_on]}" if row.engine is not None and row.made_on else ""
    bound = "" if row.limit == "-" else f", {row.limit}"
    return f"{row.threat}: {row.attack}{bound}{where}"
