"""Curves of attack results, drawn without pyplot, which keeps a state of its own."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ddcat_bench.attack.report import columns
from ddcat_bench.attack.results import AttackResult
from ddcat_bench.bootstrap import FEWEST_UNITS, Scheme, interval, scheme_of
from ddcat_bench.figures import figure_png
from ddcat_bench.result_schema import Scores

__all__ = ["curves", "epsilon_curves", "plots"]


def plots(result: AttackResult) -> dict[str, bytes]:
    """Draw all that a result has figures for: the name of each file, and its PNG."""
    over_epsilon = epsilon_curves(result)
    over_n = {"attack.png": curves(result)} if result.find("n = 1") else {}
    return over_n if over_epsilon is None else {**over_n, "epsilon.png": over_epsilon}


class _Point(NamedTuple):
    x: float
    miou: float
    below: float  # length of the error bar
    above: float


def curves(result: AttackResult) -> bytes:
    """
    Draw mIoU over n of BIM; dashed: on 8-bit adversarial images; dotted: transferred attacks; bars: over bootstrap draws.

    Clean images are n = 0. An attack of another family than BIM stands apart, as a single mark.

    Returns
    -------
    bytes
        A PNG.
    """
    own = [label for label in columns([result]) if not label.startswith("transfer")]
    name = result.checkpoint.method
    figure, axes = _canvas(result)
    places = {label: place for place, label in enumerate(own)}
    for eight_bit in (False, True):
        points = {label: point for label in own if (point := _point(result, label, places[label], eight_bit))}
        curve = [point for label, point in points.items() if label == "clean" or label.startswith("n = ")]
        marks = [point for label, point in points.items() if label != "clean" and not label.startswith("n = ")]
        style = "--" if eight_bit else "-"
        _draw(axes, curve, "C0", style, f"{name}, 8-bit" if eight_bit else name)
        _draw(axes, marks, "C0", "", None)
    for origin, labels in _transfers(result).items():
        shifted = [point for label, n in labels.items() if (point := _point(result, label, places[f"n = {n}"], False))]
        _draw(axes, shifted, "C0", ":", f"{name}, attack made on {origin}")
    axes.set_xticks(range(len(own)), own, rotation=0 if max(map(len, own)) < 8 else 45)
    axes.legend()
    return figure_png(figure)


def epsilon_curves(result: AttackResult) -> bytes | None:
    """
    Draw mIoU over epsilon, one curve for each attack that was made at several bounds, and the worst cases; clean at 0.

    Returns
    -------
    bytes or None
        A PNG; None where no attack was made at several bounds.
    """
    several = {attack: bounds for attack, bounds in _bounds(result).items() if len(bounds) > 1}
    if not several:
        return None
    figure, axes = _canvas(result)
    for colour, (attack, bounds) in enumerate(several.items()):
        points = [_point(result, "clean", 0.0, False)]
        points += [_point(result, label, 255 * epsilon, False) for epsilon, label in sorted(bounds.items())]
        _draw(axes, [point for point in points if point], f"C{colour}", "-", attack)
    axes.set_xlabel("epsilon, in grey levels of 255")
    axes.legend()
    return figure_png(figure)


def _point(run: AttackResult, label: str, x: float, eight_bit: bool) -> _Point | None:
    scores = _scores(run, label, eight_bit)
    if scores is None:
        return None
    scheme = _scheme(run)
    if scheme.units < FEWEST_UNITS:
        return _Point(x, scores.miou, 0.0, 0.0)
    low, high = interval(scores.array(), scheme)
    return _Point(x, scores.miou, max(0.0, scores.miou - low), max(0.0, high - scores.miou))


def _scheme(run: AttackResult) -> Scheme:
    return scheme_of(run.data.name, run.data.names, run.data.clips)


def _scores(run: AttackResult, label: str, eight_bit: bool) -> Scores | None:
    row = run.find(label, eight_bit=eight_bit)
    worst = (case.scores for case in run.worst_cases if (case.label, case.eight_bit) == (label, eight_bit))
    return row.scores if row else next(worst, None)


def _transfers(run: AttackResult) -> Mapping[str, dict[str, int]]:
    """For each substitute, the labels of its rows, with their n."""
    labels: dict[str, dict[str, int]] = {}
    for row in (row for row in run.rows if row.substitute is not None and not row.eight_bit):
        labels.setdefault(row.label.partition(" from ")[2], {})[row.label] = row.steps
    return labels


def _bounds(run: AttackResult) -> Mapping[str, dict[float, str]]:
    """For each attack that has a bound in its name, and for the worst cases: the label at each bound."""
    labels: dict[str, dict[float, str]] = {}
    for epsilon, label in _bounded(run):
        labels.setdefault(label.partition(" at ")[0], {})[epsilon] = label
    return labels


def _bounded(run: AttackResult) -> Iterator[tuple[float, str]]:
    yield from ((row.epsilon, row.label) for row in run.rows if " at " in row.label)
    yield from ((case.epsilon, case.label) for case in run.worst_cases)


def _canvas(result: AttackResult) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    data = result.data
    scheme = _scheme(result)
    bars = (
        f"error bars: 95 % of bootstrap draws of {scheme.unit_name}"
        if scheme.units >= FEWEST_UNITS
        else f"no error bars: {scheme.units} {scheme.unit_name} are too few to draw from"
    )
    axes.set_title(f"{data.name} {data.split}, {len(data.names)} images; {bars}", fontsize=9)
    alarms = list(dict.fromkeys(alarm.name for alarm in result.alarms))
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
