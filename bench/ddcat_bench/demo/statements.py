"""What a demonstration claims of its defences, and whether its own numbers bear it out."""

from collections.abc import Sequence
from dataclasses import dataclass

from ddcat_bench.attack.results import AttackResult
from ddcat_bench.errors import BenchError

__all__ = ["METHOD_NAMES", "Statement", "keeps_twice", "loses_half", "robustness_statements"]

METHOD_NAMES = {"clean": "No defence", "sat": "SAT", "ddcat": "DDC-AT"}


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
    """Whether a defence keeps at least twice what no defence keeps; false where it keeps nothing itself, or one is NaN."""
    return defended > 0 and defended >= 2 * undefended


def robustness_statements(results: Sequence[AttackResult], *, steps: int = 7) -> tuple[Statement, Statement]:
    """
    Judge the two claims about mIoU under BIM of `steps` steps: what no defence loses, and what SAT and DDC-AT keep.

    Parameters
    ----------
    results : sequence of AttackResult
        Of the methods clean, sat and ddcat, one each, judged on the same images.
    steps : int

    Raises
    ------
    BenchError
        Where a method or a column is missing.
    """
    clean, bare = _miou(results, "clean", "clean"), _miou(results, "clean", f"n = {steps}")
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
            f"SAT and DDC-AT keep at least twice the mIoU of no defence at n = {steps}.",
            f"no defence {bare:.3f}, {', '.join(times)}",
            all(keeps_twice(bare, miou) for miou in kept.values()),
        ),
    )


def _miou(results: Sequence[AttackResult], method: str, label: str) -> float:
    row = next((result.find(label) for result in results if result.checkpoint.method == method), None)
    if row is None:
        raise BenchError(f"there is no result of method {method} under {label}: attack one checkpoint of each method")
    return row.scores.miou
