"""
Gradient-masking alarms: signs that an attack failed for want of a usable gradient, not because the model resists it.

They follow the checks of Athalye et al. (2018) and Carlini et al. (2019). Each is a pure function over measured figures, and
each tolerance says what it allows for. All are in points of mIoU, unless they say otherwise.
"""

from collections.abc import Iterator, Sequence
from itertools import groupby, pairwise
from typing import NamedTuple

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


Finding = tuple[AlarmName, str]


class _Shot(NamedTuple):
    """What an attack left: a row of a suite, or a point of the probe."""

    name: str
    epsilon: float
    steps: int
    points: float
    label: str
    kind: tuple[float, str, bool]  # alpha, start, in 8 bits

    @property
    def black_box(self) -> bool:
        return self.name in BLACK_BOX

    @property
    def told(self) -> str:
        return f"{self.label} leaves {self.points:.1f} points"


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
    shots = [_of_row(row) for row in rows]
    findings = [*_black_box_wins(shots, BLACK_BOX_MARGIN), *_curve_alarms(shots, trained_steps), *_too_much_left(shots)]
    findings += _above_clean(shots)
    if probe is not None:
        findings += ((name, f"on the probe's {probe.images} images {evidence}") for name, evidence in _probe_alarms(probe))
    return tuple(Alarm(name=name, evidence=evidence, meaning=_MEANINGS[name]) for name, evidence in findings)


def _of_row(row: AttackRow) -> _Shot:
    effort = "queries" if row.name in BLACK_BOX else "steps"
    label = f"{row.name} of {row.steps} {effort} at {row.epsilon * 255:.3g}/255" + (" in 8 bits" if row.eight_bit else "")
    return _Shot(row.name, row.epsilon, row.steps, 100 * row.scores.miou, label, (row.alpha, row.start, row.eight_bit))


def _attacked(shots: Sequence[_Shot], *, black_box: bool) -> list[_Shot]:
    return [shot for shot in shots if shot.name != "clean" and shot.black_box == black_box]


def _black_box_wins(shots: Sequence[_Shot], margin: float) -> Iterator[Finding]:
    for black in _attacked(shots, black_box=True):
        white = [
            shot
            for shot in _attacked(shots, black_box=False)
            if shot.kind[2] == black.kind[2] and shot.epsilon <= black.epsilon + 1e-9
        ]
        if not any(shot.epsilon >= black.epsilon - 1e-9 for shot in white):
            continue  # nothing was tried at this bound
        best = min(white, key=lambda shot: shot.points)
        if best.points - black.points > margin:
            yield "black-box beats white-box", f"{black.told}, {best.told}"


def _curve_alarms(shots: Sequence[_Shot], trained_steps: int | None) -> Iterator[Finding]:
    """
    Compare attacks that differ in the number of steps alone; the clean images are n = 0 of those with a clean start.

    A black-box attack makes no curve: more steps on another model may well do less to this one, and a search with another
    budget is another search.
    """

    def kind(shot: _Shot) -> tuple[str, float, tuple[float, str, bool]]:
        return shot.name, shot.epsilon, shot.kind

    clean = [shot for shot in shots if shot.name == "clean"][:1]
    for (_, _, (_, start, _)), group in groupby(sorted(_attacked(shots, black_box=False), key=kind), key=kind):
        curve = sorted(group, key=lambda shot: shot.steps)
        for fewer, more in pairwise(curve):
            if more.points - fewer.points > WEAKENED_BY:
                yield "more steps weaken the attack", f"{fewer.told}, {more.told}"
        whole = [*clean, *curve] if start == "clean" else curve
        for before, shot, after in zip(whole, whole[1:], whole[2:], strict=False):
            if shot.steps == trained_steps and shot.points - (before.points + after.points) / 2 > EASIER_BY:
                yield (
                    "the trained n is easier than its neighbours",
                    f"{shot.told}, n = {before.steps} {before.points:.1f} and n = {after.steps} {after.points:.1f} points",
                )


def _too_much_left(shots: Sequence[_Shot]) -> Iterator[Finding]:
    for shot in _attacked(shots, black_box=False):
        if shot.epsilon >= LARGE_EPSILON - 1e-9 and shot.points > LEFT_AT_MOST:
            yield "accuracy is left at epsilon 64/255", shot.told


def _above_clean(shots: Sequence[_Shot]) -> Iterator[Finding]:
    # A black-box search that found nothing, by its own measure, may well leave single pixels better.
    for clean in [shot for shot in shots if shot.name == "clean"][:1]:
        for shot in _attacked(shots, black_box=False):
            if shot.points - clean.points > ABOVE_CLEAN_BY:
                yield "attacked mIoU is above clean", f"{shot.told}, clean images have {clean.points:.1f} points"


def _probe_alarms(probe: Probe) -> Iterator[Finding]:
    shots = [_Shot(p.name, p.epsilon, p.steps, 100 * p.miou, p.label, (0.0, "random", False)) for p in probe.points]
    yield from _black_box_wins(shots, PROBE_MARGIN)
    yield from _curve_alarms(shots, None)
    yield from _too_much_left(shots)
    last = max(shot.steps for shot in shots if shot.name == "PGD")
    yield from _above_clean([shot for shot in shots if shot.name == "clean" or (shot.name, shot.steps) == ("PGD", last)])
    shares = probe.gradients
    if shares.zero_images or shares.non_finite_images or shares.zero_pixels > ZERO_PIXELS_AT_MOST:
        yield (
            "gradients are zero or not finite",
            f"{100 * shares.zero_images:.0f} % have no gradient at all, {100 * shares.non_finite_images:.0f} % one that "
            f"is not finite, and {100 * shares.zero_pixels:.1f} % of the pixels a loss without a gradient",
        )
