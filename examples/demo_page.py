"""The page of the demonstration, one HTML file: claims, whether they hold, numbers, curves, pictures, and the commands."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from panels import Panel, Picture

from ddcat.classes import IGNORED_COLOUR, Classes
from ddcat_bench.attack.report import columns, run_names
from ddcat_bench.attack.results import AttackResult
from ddcat_bench.errors import BenchError
from ddcat_bench.fidelity.compare import FidelityResult
from ddcat_bench.figures import data_uri
from ddcat_bench.templates import render
from ddcat_bench.timing.results import SpeedResult

__all__ = ["METHOD_NAMES", "Page", "Stage", "Statement", "keeps_twice", "loses_half", "render_page", "robustness_statements"]

METHOD_NAMES = {"undefended": "Undefended", "sat": "SAT", "ddcat": "DDC-AT"}

# Of the drawing, in its own units; the page scales it.
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 420, 12, 268
_ALIKE = 0.05  # of mIoU: curves that are no further apart look like one
_LINE = 19  # between two names at the ends of curves


@dataclass(frozen=True)
class Statement:
    """
    A claim, the numbers that it rests on, and whether it held.

    Attributes
    ----------
    claim, evidence : str
    held : bool
    """

    claim: str
    evidence: str
    held: bool


def loses_half(clean: float, attacked: float) -> bool:
    """Whether at least half of a score is gone under attack; false where there was none to lose, or one is NaN."""
    return clean > 0 and attacked <= clean / 2


def keeps_twice(undefended: float, defended: float) -> bool:
    """Whether a defence keeps at least twice what the undefended model keeps; false where it keeps nothing, or one is NaN."""
    return defended > 0 and defended >= 2 * undefended


def robustness_statements(results: Sequence[AttackResult], *, steps: int = 7) -> tuple[Statement, Statement]:
    """
    Test two claims about the mIoU under BIM of `steps` steps: what the undefended model loses, and what SAT and DDC-AT keep.

    Parameters
    ----------
    results : sequence of AttackResult
        Of the methods undefended, sat and ddcat, one each, evaluated on the same images.
    steps : int

    Raises
    ------
    BenchError
        If a method or a column is missing.
    """
    clean, bare = _miou(results, "undefended", "clean"), _miou(results, "undefended", f"n = {steps}")
    kept = {METHOD_NAMES[method]: _miou(results, method, f"n = {steps}") for method in ("sat", "ddcat")}
    lost = f" ({1 - bare / clean:.0%} lost)" if clean > 0 else ""
    times = [f"{name} {miou:.3f}" + (f" ({miou / bare:.1f} times)" if bare > 0 else "") for name, miou in kept.items()]
    return (
        Statement(
            f"Without a defence, at least half of the mIoU is lost at n = {steps}.",
            f"{clean:.3f} on clean images, {bare:.3f} at n = {steps}{lost}",
            loses_half(clean, bare),
        ),
        Statement(
            f"SAT and DDC-AT keep at least twice the mIoU of the undefended model at n = {steps}.",
            f"undefended {bare:.3f}, {', '.join(times)}",
            all(keeps_twice(bare, miou) for miou in kept.values()),
        ),
    )


def _miou(results: Sequence[AttackResult], method: str, label: str) -> float:
    row = next((result.find(label) for result in results if result.checkpoint.method == method), None)
    if row is None:
        raise BenchError(f"there is no result of method {method} under {label}: attack one checkpoint of each method")
    return row.scores.miou


@dataclass(frozen=True)
class Stage:
    """A command as a user would type it, and the seconds that it took."""

    command: str
    seconds: float


@dataclass(frozen=True)
class Page:
    """
    All that the page tells.

    Attributes
    ----------
    statements : sequence of Statement
    attacks : sequence of AttackResult
        Evaluated on the same images, under the same attacks.
    panels : sequence of Panel
    classes : Classes
        For the legend of the panels.
    fidelity : FidelityResult
    speed : SpeedResult
    ready : Panel
        What a server answered with a model of the zoo.
    served : Picture
        What a server answered with the engine.
    stages : sequence of Stage
    next_command : str
        That a reader may type next, to see the models in a browser; empty: none.
    """

    statements: Sequence[Statement]
    attacks: Sequence[AttackResult]
    panels: Sequence[Panel]
    classes: Classes
    fidelity: FidelityResult
    speed: SpeedResult
    ready: Panel
    served: Picture
    stages: Sequence[Stage]
    next_command: str = ""


def render_page(page: Page) -> str:
    """
    Write the page: HTML with everything in it, without scripts, that loads nothing.

    Raises
    ------
    BenchError
        If the attack results were not evaluated on the same images.
    """
    names = [METHOD_NAMES.get(name, name) for name in run_names(page.attacks)]
    drawn = [label for label in columns(page.attacks) if label == "clean" or label.startswith("n = ")]
    places = {label: _LEFT + (_RIGHT - _LEFT) * index / max(len(drawn) - 1, 1) for index, label in enumerate(drawn)}
    bim = [next((row for row in page.attacks[0].rows if row.name == "BIM" and row.eight_bit == e), None) for e in (False, True)]
    values = {
        "page": page,
        "duration": _duration,
        "data_uri": data_uri,
        "rgb": _rgb,
        "runs": list(zip(names, page.attacks, strict=True)),
        "columns": columns(page.attacks),
        "method": METHOD_NAMES.get(page.fidelity.checkpoint.method, page.fidelity.checkpoint.method),
        "together": _together(names, page.attacks),
        "curves": _curves(names, page.attacks, places),
        "frame": {"left": _LEFT, "right": _RIGHT, "top": _TOP, "bottom": _BOTTOM},
        "ticks": [(x, label.removeprefix("n = ")) for label, x in places.items()],
        "levels": [(_height(level / 5), f"{level / 5:.1f}") for level in range(6)],
        "bim": bim[0],
        "bim_8_bit": bim[1],
        "ignored": IGNORED_COLOUR,
        "environment": page.attacks[0].environment,
    }
    return render(Path(__file__).with_name("demo_page.html"), **values)


class _Curve(NamedTuple):
    name: str
    points: list[tuple[float, float]]
    name_at: float  # height at which its name is written, beside its end


def _curves(names: Sequence[str], results: Sequence[AttackResult], places: Mapping[str, float]) -> list[_Curve]:
    points = [
        [(x, _height(row.scores.miou)) for label, x in places.items() if (row := result.find(label))] for result in results
    ]
    ends = sorted(range(len(names)), key=lambda index: points[index][-1][1])
    heights: dict[int, float] = {}
    free = 0.0
    for index in ends:  # from the top down, so that no name covers another
        heights[index] = max(points[index][-1][1], free)
        free = heights[index] + _LINE
    return [_Curve(name, points[index], heights[index]) for index, name in enumerate(names)]


def _together(names: Sequence[str], results: Sequence[AttackResult]) -> str:
    """Say so where the curves of two defences can hardly be told apart, and what may still tell the two."""
    defended = [(name, result) for name, result in zip(names, results, strict=True) if result.checkpoint.method != "undefended"]
    if len(defended) != 2:
        return ""
    (one, first), (two, second) = defended
    pairs = [(row, second.find(row.label)) for row in first.rows if not row.eight_bit and row.name != "clean"]
    most = max((abs(row.scores.miou - other.scores.miou) for row, other in pairs if other), default=1.0)
    clean = [result.find("clean") for result in (first, second)]
    if most > _ALIKE or clean[0] is None or clean[1] is None:
        return ""
    return (
        f"The curves of {one} and {two} nearly coincide: under attack they differ by {most:.3f} at most. So short a training "
        f"on generated scenes does not tell them apart. {two} claims more accuracy on clean images for the same robustness; "
        f"here it has {clean[1].scores.miou:.3f} there, {one} {clean[0].scores.miou:.3f}."
    )


def _height(miou: float) -> float:
    return _BOTTOM - (_BOTTOM - _TOP) * miou


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def _rgb(colour: tuple[int, int, int]) -> str:
    return f"rgb({colour[0]} {colour[1]} {colour[2]})"
