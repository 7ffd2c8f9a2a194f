"""Markdown of attack results, made from the results alone."""

from collections.abc import Sequence
from pathlib import Path

from ddcat_bench.attack.results import AttackResult, AttackRow, WorstCase, grey
from ddcat_bench.errors import BenchError
from ddcat_bench.markdown import literal, number
from ddcat_bench.perturbation.report import perturbation_brief, perturbation_markdown
from ddcat_bench.result_schema import check_same_images
from ddcat_bench.templates import render

__all__ = ["attack_brief", "attack_lines", "attack_markdown", "columns", "run_names"]

_WIDE = 12  # columns of a table that can still be read
_Pair = tuple[AttackRow | WorstCase | None, AttackRow | WorstCase | None]  # in floats, and in 8 bits


def attack_markdown(result: AttackResult) -> str:
    """Write one result: its alarms, the figures under each attack, those of each class, and where they come from."""
    heads = ["attack", "mIoU", "8-bit", "mean per-image mIoU", "8-bit", "pixel accuracy", "8-bit"]
    if result.background is not None:
        heads[3:3] = ["foreground mIoU", "8-bit"]
    pairs = _pairs(result)
    wide = len(pairs) > _WIDE
    single = {
        label: one.scores
        for label, (one, _) in pairs.items()
        if one and (isinstance(one, WorstCase) or not wide or label in ("clean", "n = 3", "n = 7"))
    }
    return render(
        Path(__file__).with_name("attack.md"),
        result=result,
        heads=heads,
        rows=[_row(result, label, pair) for label, pair in pairs.items()],
        attacks=attack_lines([result]),
        worst=[one for one, _ in pairs.values() if isinstance(one, WorstCase)],
        chosen=_chosen,
        class_heads=["class", *single],
        classes=[
            [literal(name), *(number(scores.class_iou[place]) for scores in single.values())]
            for place, name in enumerate(result.data.classes)
        ],
        origins={row.substitute.sha256: row.substitute for row in result.rows if row.substitute is not None}.values(),
        perturbations=perturbation_markdown(result.perturbations, result.data),
        grey=grey,
    )


def attack_brief(result: AttackResult) -> str:
    """Write the short answer: what the attack leaves, its figures, and alarms; all else is in attack.md."""
    worst = max((case for case in result.worst_cases if not case.eight_bit), key=lambda case: case.epsilon, default=None)
    last = next((row for row in reversed(result.rows) if not row.eight_bit and row.substitute is None), None)
    return render(
        Path(__file__).with_name("brief.md"),
        result=result,
        clean=result.find("clean"),
        weakest=worst or last,
        rows=[
            [f"**{label}**" if _is_worst(pair) else label, *(number(one.scores.miou if one else None) for one in pair)]
            for label, pair in _pairs(result).items()
        ],
        perturbations=perturbation_brief(result.perturbations),
    )


def _pairs(result: AttackResult) -> dict[str, _Pair]:
    """Return what was measured in floats and in 8 bits, by its label: the attacks, then the worst cases."""
    cases = {(case.label, case.eight_bit): case for case in result.worst_cases}
    return {
        **{label: (result.find(label), result.find(label, eight_bit=True)) for label in columns([result])},
        **{label: (cases.get((label, False)), cases.get((label, True))) for label, _ in cases},
    }


def _is_worst(pair: _Pair) -> bool:
    return any(isinstance(one, WorstCase) for one in pair)


def _row(result: AttackResult, label: str, pair: _Pair) -> list[str]:
    figures = [
        [one.scores.miou, one.scores.foreground_miou, one.scores.mean_image_miou, one.pixel_accuracy] if one else [None] * 4
        for one in pair
    ]
    shown = (0, 2, 3) if result.background is None else (0, 1, 2, 3)
    cells = [label, *(number(figures[kind][place]) for place in shown for kind in (0, 1))]
    return [f"**{cell}**" for cell in cells] if _is_worst(pair) else cells


def _chosen(case: WorstCase) -> str:
    shares = [case.chosen.count(place) for place in range(len(case.members))]
    return ", ".join(f"{member} {share}" for member, share in zip(case.members, shares, strict=True) if share)


def columns(results: Sequence[AttackResult]) -> list[str]:
    """Labels of all attacks that occur, in their order: clean, n = 1, ..., PGD-20."""
    return list(dict.fromkeys(row.label for result in results for row in result.rows))


def run_names(results: Sequence[AttackResult]) -> list[str]:
    """
    Name each run by its method, and by its checkpoint as well where the methods do not tell all apart.

    Raises BenchError if there is no result, or they were not evaluated on the same images.
    """
    if not results:
        raise BenchError("no results to compare: name at least one")
    check_same_images([(result.checkpoint.path, result.data) for result in results])
    methods = [result.checkpoint.method for result in results]
    if len(set(methods)) == len(methods):
        return methods
    return [f"{result.checkpoint.method} ({result.checkpoint.path})" for result in results]


def attack_lines(results: Sequence[AttackResult]) -> str:
    """Describe each column: start, step size, and bound, in floats and for 8-bit images."""
    bounds: dict[str, dict[bool, float]] = {}  # of each attack, as floats and in 8 bits
    for row in (row for result in results for row in result.rows if row.name != "clean"):
        name = row.label.replace(f"n = {row.steps}", "n = N") if row.name in ("BIM", "transfer") else row.label
        size = f", alpha {row.alpha:.4g}" if row.alpha else ""
        attack = f"{name}{': BIM of N steps' if row.name == 'BIM' else ''}, start: {row.start}{size}, epsilon {row.epsilon:.4g}"
        bounds.setdefault(attack, {})[row.eight_bit] = row.grey_levels
    return "".join(
        f"- {attack} ({levels[False]:.4g} grey levels; {levels[True]:.0f}/255 for 8-bit images)\n"
        for attack, levels in bounds.items()
    )
