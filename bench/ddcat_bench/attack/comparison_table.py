"""A table of several runs that were evaluated on the same images."""

from collections.abc import Sequence

from ddcat_bench.attack.results import AttackResult
from ddcat_bench.errors import BenchError
from ddcat_bench.markdown import data_line, number, table
from ddcat_bench.result_schema import check_same_images

__all__ = ["attack_lines", "attacks_markdown", "columns", "run_names"]


def columns(results: Sequence[AttackResult]) -> list[str]:
    """Labels of all attacks that occur, in their order: clean, n = 1, ..., PGD-20."""
    return list(dict.fromkeys(row.label for result in results for row in result.rows))


def attacks_markdown(results: Sequence[AttackResult]) -> str:
    """
    Write the mIoU of several runs under each other, as floats and as 8-bit images.

    Raises
    ------
    BenchError
        If they were not evaluated on the same images.
    """
    labels = columns(results)
    names = run_names(results)
    tables = [
        table(
            ["mIoU", *labels],
            [
                [name, *(_figure(r, label, "miou", eight_bit) for label in labels)]
                for name, r in zip(names, results, strict=True)
            ],
        )
        for eight_bit in (False, True)
    ]
    first = results[0]
    return (
        f"{data_line(first.data)}\n\n{tables[0]}\n{attack_lines(results)}\n"
        f"On 8-bit adversarial images, as a server would receive them:\n\n{tables[1]}\n{first.protocol}\n"
    )


def run_names(results: Sequence[AttackResult]) -> list[str]:
    """
    Name each run by its method, and by its checkpoint as well where the methods do not tell all apart.

    Raises
    ------
    BenchError
        If there is no result, or they were not evaluated on the same images.
    """
    if not results:
        raise BenchError("no results to compare: name at least one")
    check_same_images([(result.checkpoint.path, result.data) for result in results])
    methods = [result.checkpoint.method for result in results]
    if len(set(methods)) == len(methods):
        return methods
    return [f"{result.checkpoint.method} ({result.checkpoint.path})" for result in results]


def _figure(result: AttackResult, label: str, key: str, eight_bit: bool) -> str:
    row = result.find(label, eight_bit=eight_bit)
    return number(getattr(row.scores, key)) if row else "-"


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
