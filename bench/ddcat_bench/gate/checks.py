"""The gate's checks: a finding for each figure that has a limit."""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from ddcat.metrics import miou
from ddcat.passport import Finding, Verdict
from ddcat_bench.attack.alarms import PROBE_MARGIN, raise_alarms
from ddcat_bench.attack.results import Alarm, Probe, grey
from ddcat_bench.bootstrap import Scheme
from ddcat_bench.gate.equivalence import KEPT_AT_LEAST, compare_pool, verdict_of
from ddcat_bench.gate.pool import EPSILONS, PoolResult, ShiftSource
from ddcat_bench.gate.results import Calibration, ThreatRow
from ddcat_bench.gate.thresholds import Thresholds
from ddcat_bench.markdown import signed
from ddcat_bench.timing.results import SpeedResult

__all__ = [
    "CALIBRATION",
    "check_alarms",
    "check_calibration",
    "check_corruptions_tried",
    "check_fidelity",
    "check_latency",
    "check_robustness",
    "check_threats",
    "find_alarms",
    "latency_found",
    "needs_quiet",
]

CALIBRATION = "calibration error"  # the finding
_SHIFTS: tuple[ShiftSource, ...] = ("corrupted", "codec")
_STRONGEST = "strongest at "  # how the row of the strong attacks begins
_UNSTEADY = "the machine is not steady enough for a time so close to its limit"


def check_threats(pool: Sequence[PoolResult], scheme: Scheme, thresholds: Thresholds) -> Iterator[ThreatRow]:
    """Compare both models on clean and corrupted images, under the paper's BIM, and under the strongest attacks of a bound."""
    clean, *others = [result for result in pool if result.source not in _SHIFTS]
    groups: dict[str, list[PoolResult]] = {"clean": [clean]}
    for result in others:
        bim = result.label.startswith("BIM")
        groups.setdefault(result.label if bim else f"{_STRONGEST}{grey(result.epsilon)}", []).append(result)
    rows = [_threat(name, members, scheme, thresholds) for name, members in groups.items()]
    yield rows[0]
    if thresholds.corrupted_margin is not None:
        for source in _SHIFTS:
            members = [result for result in pool if result.source == source]
            if members:
                yield _shift(source, members, scheme, thresholds.corrupted_margin)
    yield from rows[1:]


def _threat(name: str, members: Sequence[PoolResult], scheme: Scheme, thresholds: Thresholds) -> ThreatRow:
    margin = thresholds.clean_margin if name == "clean" else thresholds.adversarial_margin
    return _row(name, members, scheme, margin, decides=name == "clean")


def _shift(source: str, members: Sequence[PoolResult], scheme: Scheme, margin: float) -> ThreatRow:
    """
    Judge each corruption by itself, and let the one that decides speak for all.

    All must pass, and any refuses. The worst of them for each image would hide what an engine loses under the milder ones.
    """
    rows = [_row(source, [member], scheme, margin) for member in members]
    order = {"refuse": 0, "inconclusive": 1, "pass": 2, None: 3}
    decisive = min(rows, key=lambda row: (order[row.verdict], row.interval[0]))
    names = tuple(f"{member.source}: {member.label}" for member in members)
    return decisive.model_copy(update={"members": names, "reason": f"{members[rows.index(decisive)].label}: {decisive.reason}"})


def _row(name: str, members: Sequence[PoolResult], scheme: Scheme, margin: float, *, decides: bool = False) -> ThreatRow:
    """Compare both models under the worst of some members; where the PyTorch model keeps too little, nothing is decided."""
    reference = np.stack([result.reference for result in members])
    engine = np.stack([result.engine for result in members])
    comparison = compare_pool(reference, engine, scheme)
    kept = decides or comparison.reference >= KEPT_AT_LEAST
    verdict, reason = verdict_of(comparison, scheme, margin=margin)
    return ThreatRow(
        name=name,
        epsilon=members[0].epsilon,
        members=tuple(f"{result.source}: {result.label}" for result in members),
        reference=comparison.reference,
        engine=comparison.engine,
        difference=comparison.difference,
        interval=comparison.interval,
        by_block={str(size): bounds for size, bounds in comparison.by_block.items()},
        class_iou=tuple((_number(first), _number(second)) for first, second in comparison.class_iou.tolist()),
        margin=margin,
        verdict=verdict if kept else None,
        reason=reason
        if kept
        else f"the PyTorch model keeps {comparison.reference:.1f} points, so there is nothing to preserve",
    )


def _number(value: float) -> float | None:
    return None if np.isnan(value) else value


def check_robustness(threats: Sequence[ThreatRow]) -> Iterator[Finding]:
    """Turn threats into findings; a threat under which nothing is left to preserve decides nothing."""
    for row in threats:
        if row.verdict is not None:
            low, high = row.interval
            yield Finding(
                name=f"mIoU, {row.name}",
                verdict=row.verdict,
                found=f"{row.engine:.2f} against {row.reference:.2f}: {signed(row.difference)} "
                f"({signed(low)} to {signed(high)}) points",
                limit=f"-{row.margin:g} to +{row.margin:g} points",
                reason=row.reason,
            )
    attacks = [row for row in threats if row.name not in ("clean", *_SHIFTS)]
    if all(row.verdict is None for row in attacks):
        yield Finding(
            name="robustness",
            verdict="inconclusive",
            found="none",
            limit=f"an attack under which the PyTorch model keeps {KEPT_AT_LEAST:g} points",
            reason="the PyTorch model keeps less under every attack, so there is no robustness that the engine could preserve",
        )
        return
    for row in attacks:
        if row.verdict is None and row.name.startswith(_STRONGEST) and row.epsilon > EPSILONS[0]:
            yield Finding(
                name=f"mIoU, {row.name}",
                verdict="inconclusive",
                found=f"{row.engine:.2f} against {row.reference:.2f} points",
                limit=f"{KEPT_AT_LEAST:g} points kept by the PyTorch model",
                reason="the PyTorch model keeps that much on the few images that this bound was chosen on, but not under the "
                "whole pool, so the engine cannot be compared under the strongest attacks, and weaker ones alone do not decide",
            )


def check_corruptions_tried(pool: Sequence[PoolResult], thresholds: Thresholds) -> Iterator[Finding]:
    """Decide nothing about corruptions that have a limit and were not tried."""
    if thresholds.corrupted_margin is not None and not any(result.source in _SHIFTS for result in pool):
        yield Finding(
            name="corruptions",
            verdict="inconclusive",
            found="not tried",
            limit=f"-{thresholds.corrupted_margin:g} to +{thresholds.corrupted_margin:g} points",
            reason="corruptions need images of red, green and blue, and these have other bands: use `corrupted_margin: null`",
        )


def check_fidelity(pool: Sequence[PoolResult], logit_error: float | None, thresholds: Thresholds) -> Iterator[Finding]:
    """Compare errors of logits, if the engine returns them, and equal labels with their thresholds."""
    if thresholds.logit_error is not None and logit_error is not None:
        yield Finding(
            name="logits",
            verdict="pass" if logit_error <= thresholds.logit_error else "refuse",
            found=f"{logit_error:.1e} standard deviations",
            limit=f"at most {thresholds.logit_error:.0e}",
            reason="the 99.9th percentile of the errors of the logits on clean images",
        )
    if thresholds.agreement is not None:
        lowest = min((result for result in pool if result.source == "replay"), key=lambda result: result.disagreement.agreement)
        yield Finding(
            name="equal labels",
            verdict="pass" if lowest.disagreement.agreement >= thresholds.agreement else "refuse",
            found=f"{lowest.disagreement.agreement:.3%} of the pixels, {lowest.label}",
            limit=f"at least {thresholds.agreement:.2%}",
            reason="the lowest share on clean images and under each replayed attack",
        )


def check_calibration(found: Calibration | None, thresholds: Thresholds) -> Iterator[Finding]:
    """Hold the calibration error of the engine against its limit, where there is one."""
    limit = thresholds.calibration_error
    if limit is None or found is None:
        return
    error = None if found.engine is None else found.engine.error
    if error is None:
        reason = "the engine gives no confidence: export it with --confidence"
    else:
        reason = "the expected calibration error of the engine on clean images"
    yield Finding(
        name=CALIBRATION,
        verdict="inconclusive" if error is None else "pass" if error <= limit else "refuse",
        found="none" if error is None else f"{error:.4f} (PyTorch model: {found.reference.error:.4f})",
        limit=f"at most {limit:g}",
        reason=reason,
    )


def find_alarms(
    pool: Sequence[PoolResult], probe: Probe | None, thresholds: Thresholds, *, transferred: bool
) -> tuple[Alarm, ...]:
    """
    Look for signs that the attacks on the engine's own graph failed for want of a usable gradient.

    Where the twin is another model, that a replay does more than an attack on it says nothing of the engine's gradients. What
    only asks the engine, or asks nothing, should do no more than the best of those that follow a gradient, on the same images.
    """
    left = {(result.source, result.label, result.epsilon): 100 * miou(result.engine.sum(0)) for result in pool}
    alarms = list(raise_alarms((), probe, trained_steps=None)) if probe is not None else []
    for (source, label, epsilon), points in left.items():
        replayed = left.get(("replay", label, epsilon))
        if source == "twin" and not transferred and replayed is not None and points > replayed + thresholds.adversarial_margin:
            alarms.append(
                Alarm(
                    name="black-box beats white-box",
                    evidence=f"{label} made on the PyTorch model leaves the engine {replayed:.2f} points; made on its "
                    f"own graph, it leaves {points:.2f}",
                    meaning="An attack made on another model did more than one made on the engine's own graph. The gradients "
                    "of that graph are masked, so the engine's robustness is not known.",
                )
            )
    return (*alarms, *_black_box_wins(pool))


def _black_box_wins(pool: Sequence[PoolResult]) -> Iterator[Alarm]:
    for asked in (result for result in pool if result.source in ("engine", "noise")):
        gradients = [result for result in pool if result.source in ("replay", "twin") and result.epsilon == asked.epsilon]
        left = {f"{result.source}: {result.label}": _left(result, asked.attacked) for result in gradients}
        best, points = min(left, key=left.__getitem__, default=None), _left(asked, asked.attacked)
        if best is not None and left[best] - points > PROBE_MARGIN:
            yield Alarm(
                name="black-box beats white-box",
                evidence=f"{asked.source}: {asked.label} leaves the engine {points:.2f} points on {asked.attacked.sum()} "
                f"images; the best gradient attack ({best}) leaves {left[best]:.2f}",
                meaning="An attack without gradients did more than every gradient attack. So the gradient attacks are too "
                "weak, and most images met no others. The engine's robustness is not known.",
            )


def _left(result: PoolResult, chosen: npt.NDArray[np.bool_]) -> float:
    return 100 * miou(result.engine[chosen].sum(0))


def check_alarms(alarms: Sequence[Alarm]) -> Iterator[Finding]:
    """Make each alarm an inconclusive finding."""
    for alarm in alarms:
        yield Finding(name=alarm.name, verdict="inconclusive", found=alarm.evidence, limit="no alarm", reason=alarm.meaning)


def check_latency(speed: SpeedResult, thresholds: Thresholds) -> Finding | None:
    """
    Hold the engine's time, as a share of eager PyTorch's on the original graph, against its limit; None where there is none.

    Where even the engine's worst turn lies within the limit, the machine need not have been quiet: what disturbs a turn slows
    both. A refusal needs quiet, for a busy machine is an excuse for an engine that was slow.
    """
    if thresholds.latency is None:
        return None
    upper, lower, worst = _latency_shares(speed)
    calm = speed.stable and not speed.disturbed
    verdict: Verdict = "inconclusive"
    reason = "decided by the quartiles of the ratio, turn by turn in one process"
    if worst <= thresholds.latency:
        verdict, reason = "pass", f"every turn was within the limit; the slowest took {worst:.2f}"
    elif calm and upper <= thresholds.latency:
        verdict = "pass"
    elif calm and lower > thresholds.latency:
        verdict = "refuse"
    elif not speed.stable:
        reason = (
            f"the medians of the last three windows differ by more than 10 %: {_UNSTEADY}; the slowest turn took {worst:.2f}"
        )
    elif speed.disturbed:
        cores = "" if speed.others is None else f" {speed.others:.2f} cores"
        reason = f"other processes kept{cores or ' the machine'} busy meanwhile: {_UNSTEADY}; the slowest turn took {worst:.2f}"
    else:
        reason = "the limit lies between the quartiles of the ratio, turn by turn in one process"
    return Finding(
        name="latency",
        verdict=verdict,
        found=latency_found(speed),
        limit=f"at most {thresholds.latency:g}",
        reason=reason,
    )


def latency_found(speed: SpeedResult) -> str:
    """Write the engine's time as a share of PyTorch's."""
    upper, lower, _ = _latency_shares(speed)
    ratio = speed.ratios[0]
    return f"{1 / ratio.median:.2f} ({lower:.2f} to {upper:.2f}) of eager PyTorch, {ratio.baseline}"


def _latency_shares(speed: SpeedResult) -> tuple[float, float, float]:
    """Upper and lower quartile of the engine's time as a share of PyTorch's, and the worst of all turns."""
    ratio = speed.ratios[0]
    upper = 1 / ratio.lower_quartile
    return upper, 1 / ratio.upper_quartile, max(upper, 1 / ratio.lowest)


def needs_quiet(speed: SpeedResult, thresholds: Thresholds) -> bool:
    """Return True if the machine was too busy to decide, so that another attempt may help."""
    finding = check_latency(speed, thresholds)
    calm = speed.stable and not speed.disturbed
    return finding is not None and finding.verdict == "inconclusive" and not calm
