"""The gate's verdict: whether an engine is as accurate, as robust and as fast as claimed: yes, no, or not known."""

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime

import torch

from ddcat.bundle import Bundle
from ddcat.metrics import miou
from ddcat.passport import Passport, Verdict
from ddcat_bench.bootstrap import Scheme, scheme_of, sequence_in
from ddcat_bench.entries import DataEntry
from ddcat_bench.gate.attacked import Attacked
from ddcat_bench.gate.case import Case
from ddcat_bench.gate.findings import find_alarms, judge_alarms, judge_fidelity, judge_latency, judge_robustness, judge_threats
from ddcat_bench.gate.flips import MARGINS
from ddcat_bench.gate.limits import Limits
from ddcat_bench.gate.pool import TWIN_AGREES, Judged
from ddcat_bench.gate.results import ClassEntry, GateResult, MarginRow, MemberRow
from ddcat_bench.subjects import describe_checkpoint, describe_data, describe_environment
from ddcat_bench.timing.cost import CostResult
from ddcat_bench.timing.results import SpeedResult

__all__ = ["PROTOCOL", "conclude", "passport_of", "twin_agreement", "worst"]

PROTOCOL = (
    "The engine and its reference, the PyTorch main branch, label the same 8-bit images. Under each threat both meet the worst "
    "of a shared pool of attacks, chosen for each image and each of them so that its own mIoU is low (greedy, once, on all "
    "images): attacks made on the reference and replayed, made with the gradients of the engine's own graph, made by asking "
    "the engine (for its labels, and for its logits where it gives them), and noise. The difference of the two data-set mIoUs "
    "has a paired bootstrap interval of 90 % (10,000 draws), which passes within the margin either way, is refused beyond it, "
    "and decides nothing otherwise. An adversary with more steps, queries or knowledge than the pool has could do more."
)


def conclude(
    case: Case, attacked: Attacked, speed: SpeedResult, limits: Limits, *, seconds: float, cost: CostResult | None = None
) -> GateResult:
    """
    Hold what was found against the limits.

    Parameters
    ----------
    case : Case
    attacked : Attacked
    speed : SpeedResult
        Of the same engine.
    limits : Limits
        Of its precision.
    seconds : float
        That all of it took.
    cost : CostResult, optional
        Of the same engine; it is reported and decides nothing.
    """
    data = describe_data(case.dataset, attacked.names, usual_list=case.bundle.manifest.data.list_sha256)
    scheme = scheme_of(data.name, attacked.names, data.clips)
    threats = tuple(judge_threats(attacked.judged, scheme, limits))
    transferred = twin_agreement(attacked) < TWIN_AGREES
    alarms = find_alarms(attacked.judged, attacked.probe, limits, transferred=transferred)
    latency = judge_latency(speed, limits)
    findings = (
        *judge_fidelity(attacked.judged, attacked.logit_error, limits),
        *judge_robustness(threats),
        *judge_alarms(alarms),
        *([] if latency is None else [latency]),
    )
    clean = attacked.judged[0]
    true_pixels = clean.reference[:, :, [0, 2]].sum((0, 2))  # (K,) true positives and false negatives
    shares = (true_pixels / true_pixels.sum()).tolist()
    return GateResult(
        bundle=speed.bundle,
        checkpoint=describe_checkpoint(case.checkpoint),
        data=data,
        precision=case.bundle.manifest.engine.effective_precision,
        budget=case.budget.name,
        protocol=PROTOCOL,
        drawn=scheme.drawn,
        verdict=worst(finding.verdict for finding in findings),
        findings=findings,
        warnings=tuple(_warnings(data, scheme)),
        limits=limits,
        threats=threats,
        members=tuple(_member(judged) for judged in attacked.judged),
        classes=tuple(ClassEntry(name=n, share=s) for n, s in zip(case.dataset.classes.names, shares, strict=True)),
        transferred=transferred,
        alarms=alarms,
        probe=attacked.probe,
        speed=speed,
        cost=cost,
        environment=describe_environment(torch.device("cpu"), seconds),
    )


def twin_agreement(attacked: Attacked) -> float:
    """Give the least share of pixels that engine and twin label alike, on clean images, on replayed ones and on the twin's."""
    members = (judged for judged in attacked.judged if judged.source in ("replay", "twin"))
    return min(attacked.pilot.twin_agreement, *(judged.flips.twin_agreement for judged in members))


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """Refuse where anything is refused, pass where everything passes, and know nothing otherwise."""
    found = set(verdicts)
    return "refuse" if "refuse" in found else "inconclusive" if "inconclusive" in found else "pass"


def _warnings(data: DataEntry, scheme: Scheme) -> Iterator[str]:
    if scheme.kind == "images" and (frames := sequence_in(data.name, data.names, data.clips)) is not None:
        yield (
            f"File names such as {frames[0]} and {frames[1]} look like frames of video, and images were drawn one by one. "
            "Neighbouring frames resemble each other, which makes the intervals too narrow. Say which frames belong to one "
            "clip with 'clips' in classes.yaml, or with --clips; --clips '(.+)' says that every image stands alone."
        )


def passport_of(bundle: Bundle, result: GateResult) -> Passport:
    """Give what travels with the bundle."""
    return Passport(
        manifest_sha256=bundle.digest,
        verdict=result.verdict,
        budget=result.budget,
        judged_at=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        data=f"{result.data.name}, {result.data.split}",
        images=len(result.data.names),
        findings=result.findings,
        not_judged=result.limits.not_judged,
        versions=result.environment.versions,
    )


def _member(judged: Judged) -> MemberRow:
    return MemberRow(
        source=judged.source,
        label=judged.label,
        epsilon=judged.epsilon,
        images=int(judged.attacked.sum()),
        reference=100 * miou(judged.reference.sum(0)),
        engine=100 * miou(judged.engine.sum(0)),
        agreement=judged.flips.agreement,
        twin_agreement=judged.flips.twin_agreement,
        band_agreement=judged.flips.band_agreement,
        interior_agreement=judged.flips.interior_agreement,
        margins=tuple(
            MarginRow(lowest=lowest, pixels=pixels, differing=differing)
            for lowest, pixels, differing in zip(
                MARGINS, judged.flips.margins.sum(0).tolist(), judged.flips.margins_differing.sum(0).tolist(), strict=True
            )
        ),
    )
