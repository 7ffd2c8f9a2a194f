"""
Gradient-masking alarms: signs that an attack failed for want of a usable gradient, not because the model resists it.

They follow the checks of Athalye et al. (2018) and Carlini et al. (2019). Each is a pure function over measured figures, and
each tolerance says what it allows for. All are in points of mIoU, unless they say otherwise.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, pairwise

from ddcat_bench.attack.results import Alarm, AlarmName, AttackRow, Probe

__all__ = ["BLACK_BOX", "LARGE_EPSILON", "PROBE_MARGIN", "raise_alarms"]

BLACK_BOX = frozenset({"noise", "Square", "DLA", "transfer"})  # names of attacks that use no gradient of the model
LARGE_EPSILON = 64 / 255  # a quarter of the whole range: no published segmenter keeps anything there

# A black-box search keeps the best it saw of each image and PGD its last step, and seeds alone move a figure by up to 0.4.
BLACK_BOX_MARGIN = 1.0
# On the few images of the probe a class hangs on some hundred pixels, so that single regions move the mIoU; on seven models
# of CamVid the best black-box figure was 4.7 to 12.7 points above PGD's.
PROBE_MARGIN = 2.0
# Signed steps of a constant size wander at the rim of the ball; but over all 84 steps of the 12 models of
# docs/results/camvid-methods, no further step raised the mIoU at all.
WEAKENED_BY = 0.5
# A quarter of the range blinds a sound model, and what it then hits it hits by chance: CosPGD-20 left 0.1 to 0.5 points of
# seven models on CamVid (11 classes), and 7 to 13 of adversarially trained ones on scenes (6 classes).
LEFT_AT_MOST = 15.0
# No gradient is exactly zero by chance; float32 allows it for a pixel whose right logit leads by 100.
ZERO_PIXELS_AT_MOST = 0.01  # a share, not points
# A curve over n falls ever more slowly; in docs/results/camvid-methods no n is more than 0.94 above the mean of its neighbours.
EASIER_BY = 2.0
# An attack that does nothing leaves the clean mIoU; small ones move single pixels either way.
ABOVE_CLEAN_BY = 0.5

_MEANINGS: dict[AlarmName, str] = {
    "black-box beats white-box": "An attack that knows less did more. So the white-box figure is not the worst case, and the "
    "gradient that it followed is masked or useless. Do not quote this figure.",
    "more steps weaken the attack": "More steps along a true gradient do not help the model. So the step size or the gradient "
    "is wrong, and the attack with the most steps is not the strongest one.",
    "accuracy is left at epsilon 64/255": "No known segmenter survives such a bound. So the attack does not work, and the "
    "figures at smaller bounds are too high as well.",
    "gradients are zero or not finite": "A white-box attack cannot work without a gradient: the model saturates or rounds. "
    "Attack it without that layer, with a straight-through gradient, or with more black-box queries.",
    "the trained n is easier than its neighbours": "The model resists the very attack of its training, but not similar ones. "
    "Quote another n, or another attack.",
    "attacked mIoU is above clean": "The attack tells the model the answer (label leaking), or goes the wrong way. Its figure "
    "says nothing about robustness.",
}


def raise_alarms(rows: Sequence[AttackRow], probe: Probe | None, *, trained_steps: int | None) -> tuple[Alarm, ...]:
    """
    Check the rows of a suite and the figures of its probe.

    Parameters
    ----------
    rows : sequence of AttackRow
        Of one checkpoint and one protocol. Rows of floats and of 8-bit images are compared with their own kind.
    probe : Probe or None
        None where there was none: its checks are then left out.
    trained_steps : int or None
        n of the attack of the checkpoint's training; None where there was none.

    Returns
    -------
    tuple of Alarm
        Empty where nothing was found, which is no proof that the gradients are sound. One for each finding.
    """
    findings = [*_rows_alarms(rows, trained_steps)]
    if probe is not None:
        findings += _probe_alarms(probe)
    return tuple(Alarm(name=name, evidence=evidence, meaning=_MEANINGS[name]) for name, evidence in findings)


Finding = tuple[AlarmName, str]


def _rows_alarms(rows: Sequence[AttackRow], trained_steps: int | None) -> Iterator[Finding]:
    yield from _black_box_wins(rows)
    for curve in _curves(rows):
        yield from _weakened(curve)
        if trained_steps is not None:
            yield from _easier(curve, trained_steps)
    for row in _attacked(rows):
        if row.name not in BLACK_BOX and row.epsilon >= LARGE_EPSILON - 1e-9 and 100 * row.scores.miou > LEFT_AT_MOST:
            yield "accuracy is left at epsilon 64/255", f"{_name(row)} leaves {_points(row.scores.miou)}"
    yield from _above_clean(rows)


def _attacked(rows: Iterable[AttackRow]) -> list[AttackRow]:
    return [row for row in rows if row.name != "clean"]


def _black_box_wins(rows: Sequence[AttackRow]) -> Iterator[Finding]:
    for black in _attacked(rows):
        if black.name not in BLACK_BOX:
            continue
        white = [
            row
            for row in _attacked(rows)
            if row.name not in BLACK_BOX and row.eight_bit == black.eight_bit and row.epsilon <= black.epsilon + 1e-9
        ]
        if not any(row.epsilon >= black.epsilon - 1e-9 for row in white):
            continue  # nothing was tried at this bound
        best = min(white, key=lambda row: row.scores.miou)
        if 100 * (best.scores.miou - black.scores.miou) > BLACK_BOX_MARGIN:
            yield (
                "black-box beats white-box",
                f"{_name(black)} leaves {_points(black.scores.miou)}, {_name(best)} leaves {_points(best.scores.miou)}",
            )


def _curves(rows: Sequence[AttackRow]) -> Iterator[list[AttackRow]]:
    """
    Give the rows that differ in the number of steps alone, ascending, with the clean row as n = 0 of a clean start.

    A black-box attack makes no curve: more steps on another model may well do less to this one, and a search with another
    budget is another search.
    """

    def kind(row: AttackRow) -> tuple[str, float, float, str, bool]:
        return row.name, row.epsilon, row.alpha, row.start, row.eight_bit

    clean = [row for row in rows if row.name == "clean"][:1]
    white = [row for row in _attacked(rows) if row.name not in BLACK_BOX]
    for (_, _, _, start, _), curve in groupby(sorted(white, key=kind), key=kind):
        yield (clean if start == "clean" else []) + sorted(curve, key=lambda row: row.steps)


def _weakened(curve: Sequence[AttackRow]) -> Iterator[Finding]:
    for fewer, more in pairwise(row for row in curve if row.name != "clean"):
        if 100 * (more.scores.miou - fewer.scores.miou) > WEAKENED_BY:
            yield (
                "more steps weaken the attack",
                f"{_name(fewer)} leaves {_points(fewer.scores.miou)}, {_name(more)} leaves {_points(more.scores.miou)}",
            )


def _easier(curve: Sequence[AttackRow], trained_steps: int) -> Iterator[Finding]:
    for before, row, after in zip(curve, curve[1:], curve[2:], strict=False):
        if row.steps != trained_steps:
            continue
        mean = (before.scores.miou + after.scores.miou) / 2
        if 100 * (row.scores.miou - mean) > EASIER_BY:
            yield (
                "the trained n is easier than its neighbours",
                f"{_name(row)} leaves {_points(row.scores.miou)}, n = {before.steps} {_points(before.scores.miou)} and "
                f"n = {after.steps} {_points(after.scores.miou)}",
            )


def _above_clean(rows: Sequence[AttackRow]) -> Iterator[Finding]:
    clean = next((row for row in rows if row.name == "clean"), None)
    for row in _attacked(rows):
        # A black-box search that found nothing, by its own measure, may well leave single pixels better.
        if clean is not None and row.name not in BLACK_BOX and 100 * (row.scores.miou - clean.scores.miou) > ABOVE_CLEAN_BY:
            yield (
                "attacked mIoU is above clean",
                f"{_name(row)} leaves {_points(row.scores.miou)}, clean images have {_points(clean.scores.miou)}",
            )


def _probe_alarms(probe: Probe) -> Iterator[Finding]:
    where = f"on the probe's {probe.images} images "
    attacks = probe.find("PGD")
    few, more = min(attacks, key=lambda point: point.steps), max(attacks, key=lambda point: point.steps)
    best = min(attacks, key=lambda point: point.miou)
    for point in probe.points:
        if point.name in BLACK_BOX and 100 * (best.miou - point.miou) > PROBE_MARGIN:
            yield (
                "black-box beats white-box",
                f"{where}{point.label} leaves {_points(point.miou)}, {best.label} leaves {_points(best.miou)}",
            )
    if 100 * (more.miou - few.miou) > WEAKENED_BY:
        yield (
            "more steps weaken the attack",
            f"{where}{few.label} leaves {_points(few.miou)}, {more.label} leaves {_points(more.miou)}",
        )
    for point in probe.find("CosPGD"):  # made at that bound alone
        if 100 * point.miou > LEFT_AT_MOST:
            yield "accuracy is left at epsilon 64/255", f"{where}{point.label} leaves {_points(point.miou)}"
    [clean] = probe.find("clean")
    if 100 * (more.miou - clean.miou) > ABOVE_CLEAN_BY:
        yield (
            "attacked mIoU is above clean",
            f"{where}{more.label} leaves {_points(more.miou)}, clean ones have {_points(clean.miou)}",
        )
    shares = probe.gradients
    if shares.zero_images or shares.non_finite_images or shares.zero_pixels > ZERO_PIXELS_AT_MOST:
        yield (
            "gradients are zero or not finite",
            f"{where}{100 * shares.zero_images:.0f} % have no gradient at all, {100 * shares.non_finite_images:.0f} % one that "
            f"is not finite, and {100 * shares.zero_pixels:.1f} % of the pixels a loss without a gradient",
        )


def _name(row: AttackRow) -> str:
    effort = "queries" if row.name in BLACK_BOX else "steps"
    return f"{row.name} of {row.steps} {effort} at {row.epsilon * 255:.3g}/255" + (" in 8 bits" if row.eight_bit else "")


def _points(miou: float) -> str:
    return f"{100 * miou:.1f} points"
