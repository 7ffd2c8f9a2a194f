"""Curves of attack results, drawn without pyplot, which keeps a state of its own."""

import base64
import io
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ddcat_bench.attack.results import AttackResult
from ddcat_bench.attack.side_by_side import columns, run_names
from ddcat_bench.bootstrap import interval
from ddcat_bench.entries import Scores

__all__ = ["curves", "data_uri", "epsilon_curves", "plots", "to_png"]

_SPREADS = {
    True: "error bars: standard deviation over the runs of a method",
    False: "error bars: 95 % of bootstrap draws over the images",
}


def plots(result: AttackResult) -> dict[str, bytes]:
    """Draw all that a result has figures for: the name of each file, and its PNG."""
    over_epsilon = epsilon_curves([result])
    over_n = {"attack.png": curves([result])} if result.find("n = 1") else {}
    return over_n if over_epsilon is None else {**over_n, "epsilon.png": over_epsilon}


class _Point(NamedTuple):
    x: float
    miou: float
    below: float  # length of the error bar
    above: float


def curves(results: Sequence[AttackResult]) -> bytes:
    """
    Draw mIoU over n of BIM, one curve for each method; dashed: on 8-bit adversarial images; dotted: transferred attacks.

    Clean images are n = 0. An attack of another family than BIM stands apart, as a single mark. Of a method with several runs,
    the mean, with the standard deviation over the runs as error bars; of a single run, a bootstrap interval over the images.

    Parameters
    ----------
    results : sequence of AttackResult
        Judged on the same images.

    Returns
    -------
    bytes
        A PNG.

    Raises
    ------
    BenchError
        Where they were not judged on the same images.
    """
    own = [label for label in columns(results) if not label.startswith("transfer")]
    figure, axes = _canvas(results)
    places = {label: place for place, label in enumerate(own)}
    for index, (name, runs) in enumerate(_groups(results).items()):
        for eight_bit in (False, True):
            points = {label: point for label in own if (point := _point(runs, label, places[label], eight_bit))}
            curve = [point for label, point in points.items() if label == "clean" or label.startswith("n = ")]
            marks = [point for label, point in points.items() if label != "clean" and not label.startswith("n = ")]
            style = "--" if eight_bit else "-"
            _draw(axes, curve, f"C{index}", style, f"{name}, 8-bit" if eight_bit else name)
            _draw(axes, marks, f"C{index}", "", None)
        for origin, labels in _transfers(runs).items():
            shifted = [point for label, n in labels.items() if (point := _point(runs, label, places[f"n = {n}"], False))]
            _draw(axes, shifted, f"C{index}", ":", f"{name}, attack made on {origin}")
    axes.set_xticks(range(len(own)), own, rotation=0 if max(map(len, own)) < 8 else 45)
    axes.legend()
    return to_png(figure)


def epsilon_curves(results: Sequence[AttackResult]) -> bytes | None:
    """
    Draw mIoU over epsilon, one curve for each attack that was made at several bounds, and the worst cases; clean at 0.

    Parameters
    ----------
    results : sequence of AttackResult
        Judged on the same images; the error bars are those of `curves`.

    Returns
    -------
    bytes or None
        A PNG; None where no attack was made at several bounds.
    """
    figure, axes = _canvas(results)
    colour = 0
    for name, runs in _groups(results).items():
        for attack, bounds in _bounds(runs[0]).items():
            if len(bounds) < 2:
                continue
            points = [_point(runs, "clean", 0.0, False)]
            points += [_point(runs, label, 255 * epsilon, False) for epsilon, label in sorted(bounds.items())]
            shown = attack if len(results) == 1 else f"{name}, {attack}"
            _draw(axes, [point for point in points if point], f"C{colour}", "-", shown)
            colour += 1
    if not colour:
        return None
    axes.set_xlabel("epsilon, in grey levels of 255")
    axes.legend()
    return to_png(figure)


def _groups(results: Sequence[AttackResult]) -> Mapping[str, list[AttackResult]]:
    """Runs of one method and architecture together."""
    run_names(results)  # refuses what does not compare
    groups: dict[str, list[AttackResult]] = {}
    alike = len({result.checkpoint.architecture for result in results}) == 1
    for result in results:
        name = result.checkpoint.method if alike else f"{result.checkpoint.method}, {result.checkpoint.architecture}"
        groups.setdefault(name, []).append(result)
    return groups


def _point(runs: Sequence[AttackResult], label: str, x: float, eight_bit: bool) -> _Point | None:
    found = [scores for run in runs if (scores := _scores(run, label, eight_bit))]
    if not found:
        return None
    values = [scores.miou for scores in found]
    mean = statistics.fmean(values)
    if len(values) > 1:
        spread = statistics.stdev(values)
        return _Point(x, mean, spread, spread)
    low, high = interval(found[0].array())
    return _Point(x, mean, max(0.0, mean - low), max(0.0, high - mean))


def _scores(run: AttackResult, label: str, eight_bit: bool) -> Scores | None:
    row = run.find(label, eight_bit=eight_bit)
    worst = (case.scores for case in run.worst_cases if (case.label, case.eight_bit) == (label, eight_bit))
    return row.scores if row else next(worst, None)


def _transfers(runs: Sequence[AttackResult]) -> Mapping[str, dict[str, int]]:
    """For each substitute, the labels of its rows, with their n."""
    found: dict[str, dict[str, int]] = {}
    for row in (row for run in runs for row in run.rows if row.substitute is not None and not row.eight_bit):
        found.setdefault(row.label.partition(" from ")[2], {})[row.label] = row.steps
    return found


def _bounds(run: AttackResult) -> Mapping[str, dict[float, str]]:
    """For each attack that has a bound in its name, and for the worst cases: the label at each bound."""
    found: dict[str, dict[float, str]] = {}
    for epsilon, label in _bounded(run):
        found.setdefault(label.partition(" at ")[0], {})[epsilon] = label
    return found


def _bounded(run: AttackResult) -> Iterator[tuple[float, str]]:
    yield from ((row.epsilon, row.label) for row in run.rows if " at " in row.label)
    yield from ((case.epsilon, case.label) for case in run.worst_cases)


def _canvas(results: Sequence[AttackResult]) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    data = results[0].data
    several = any(len(group) > 1 for group in _groups(results).values())
    axes.set_title(f"{data.name} {data.split}, {len(data.names)} images; {_SPREADS[several]}", fontsize=9)
    alarms = list(dict.fromkeys(alarm.name for result in results for alarm in result.alarms))
    if alarms:
        figure.suptitle(f"ALARM: {'; '.join(alarms)}", color="red", weight="bold", fontsize=10, wrap=True)
    axes.set_ylim(-0.02, 1)
    axes.set_ylabel("mIoU")
    axes.grid(alpha=0.3)
    return figure, axes


def _draw(axes: Axes, points: Sequence[_Point], colour: str, style: str, name: str | None) -> None:
    if not points:
        return
    x, miou, below, above = zip(*points, strict=True)
    axes.errorbar(
        x,
        miou,
        yerr=(below, above),
        linestyle=style,
        marker="o" if style == "-" else "D" if not style else "",
        markersize=4,
        capsize=2,
        color=colour,
        alpha=1.0 if style in ("-", "") else 0.6,
        label=name,
    )


def to_png(figure: Figure) -> bytes:
    """Draw a figure."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)  # a figure without pyplot draws with Agg
    return buffer.getvalue()


def data_uri(png: bytes) -> str:
    """Give a PNG as an address that holds it."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
