"""Curves of attack results, drawn without pyplot, which keeps a state of its own."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ddcat_bench.attack.report import columns
from ddcat_bench.attack.results import AttackResult
from ddcat_bench.bootstrap import FEWEST_UNITS, Scheme, interval, scheme_of
from ddcat_bench.figures import figure_png

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

    Clean images are n = 0. An attack of another family than BIM stands apart, as a single mark. Returns a PNG.
    """
    own = [label for label in columns([result]) if not label.startswith("transfer")]
    name = result.checkpoint.method
    figure, axes = _canvas(result)
    places = {label: place for place, label in enumerate(own)}
    on_curve = [label == "clean" or label.startswith("n = ") for label in own]
    for eight_bit in (False, True):
        points = [_points(result, {label: place}, eight_bit) for label, place in places.items()]
        curve, marks = (
            [point for found, on in zip(points, on_curve, strict=True) if on == wanted for point in found]
            for wanted in (True, False)
        )
        _draw(axes, curve, "C0", "--" if eight_bit else "-", f"{name}, 8-bit" if eight_bit else name)
        _draw(axes, marks, "C0", "", None)
    for origin, labels in _transfers(result).items():
        shifted = _points(result, {label: places[f"n = {n}"] for label, n in labels.items()}, False)
        _draw(axes, shifted, "C0", ":", f"{name}, attack made on {origin}")
    axes.set_xticks(range(len(own)), own, rotation=0 if max(map(len, own)) < 8 else 45)
    axes.legend()
    return figure_png(figure)


def epsilon_curves(result: AttackResult) -> bytes | None:
    """
    Draw mIoU over epsilon, one curve for each attack that was made at several bounds, and the worst cases; clean at 0.

    Returns a PNG, or None where no attack was made at several bounds.
    """
    several = {attack: bounds for attack, bounds in _bounds(result).items() if len(bounds) > 1}
    if not several:
        return None
    figure, axes = _canvas(result)
    for colour, (attack, bounds) in enumerate(several.items()):
        places = {"clean": 0.0, **{label: 255 * epsilon for epsilon, label in sorted(bounds.items())}}
        _draw(axes, _points(result, places, False), f"C{colour}", "-", attack)
    axes.set_xlabel("epsilon, in grey levels of 255")
    axes.legend()
    return figure_png(figure)


def _points(run: AttackResult, places: Mapping[str, float], eight_bit: bool) -> list[_Point]:
    """Place the mIoU under each attack, or of each worst case, where it was measured, with its error bar."""
    worst = {case.label: case.scores for case in run.worst_cases if case.eight_bit == eight_bit}
    scheme, points = _scheme(run), []
    for label, x in places.items():
        row = run.find(label, eight_bit=eight_bit)
        scores = row.scores if row else worst.get(label)
        if scores is not None:
            middle = scores.miou
            low, high = (middle, middle) if scheme.units < FEWEST_UNITS else interval(scores.array(), scheme)
            points.append(_Point(x, middle, max(0.0, middle - low), max(0.0, high - middle)))
    return points


def _scheme(run: AttackResult) -> Scheme:
    return scheme_of(run.data.name, run.data.names, run.data.clips)


def _transfers(run: AttackResult) -> Mapping[str, dict[str, int]]:
    """For each substitute, the labels of its rows, with their n."""
    labels: dict[str, dict[str, int]] = {}
    for row in (row for row in run.rows if row.substitute is not None and not row.eight_bit):
        labels.setdefault(row.label.partition(" from ")[2], {})[row.label] = row.steps
    return labels


def _bounds(run: AttackResult) -> Mapping[str, dict[float, str]]:
    """For each attack that has a bound in its name, and for the worst cases: the label at each bound."""
    labels: dict[str, dict[float, str]] = {}
    bounded = [(row.label, row.epsilon) for row in run.rows if " at " in row.label]
    for label, epsilon in (*bounded, *((case.label, case.epsilon) for case in run.worst_cases)):
        labels.setdefault(label.partition(" at ")[0], {})[epsilon] = label
    return labels


def _canvas(result: AttackResult) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    data, scheme = result.data, _scheme(result)
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
    mark, alpha = {"-": ("o", 1.0), "": ("D", 1.0)}.get(style, ("", 0.6))
    axes.errorbar(
        x,
        miou,
        yerr=(below, above),
        linestyle=style,
        marker=mark,
        markersize=4,
        capsize=2,
        color=colour,
        alpha=alpha,
        label=name,
    )
