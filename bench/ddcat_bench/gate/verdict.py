"""The gate's verdict: whether an engine is as accurate, as robust and as fast as claimed: yes, no, or not known."""

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime

import torch

from ddcat.bundle import Bundle
from ddcat.metrics import miou
from ddcat.passport import Passport, Verdict
from ddcat_bench.bootstrap import Scheme, scheme_of, sequence_in
from ddcat_bench.describe import describe_data, describe_environment, describe_reference
from ddcat_bench.gate.checks import (
    check_alarms,
    check_calibration,
    check_corruptions_tried,
    check_fidelity,
    check_latency,
    check_robustness,
    check_threats,
    find_alarms,
)
from ddcat_bench.gate.disagreement import MARGINS
from ddcat_bench.gate.job import GateJob
from ddcat_bench.gate.measurements import Measurements
from ddcat_bench.gate.pool import TWIN_AGREEMENT, PoolResult
from ddcat_bench.gate.results import ClassEntry, GateResult, MarginRow, MemberRow
from ddcat_bench.gate.thresholds import Thresholds
from ddcat_bench.result_schema import DataEntry
from ddcat_bench.timing.results import SpeedResult, ThroughputResult

__all__ = ["PROTOCOL", "conclude", "passport_of", "twin_agreement", "worst"]

PROTOCOL = (
    "The engine and the PyTorch model (its main branch) label the same 8-bit images. Both are attacked from a shared pool. It "
    "holds attacks made on the PyTorch model, attacks made with the gradients of the engine's own graph, attacks made with "
    "queries to the engine (for its labels, and for its logits if it gives them), and noise. Under each threat, the attack "
    "that is worst for a model is chosen for each image, so that its data-set mIoU becomes low; the choice is greedy and made "
    "once. The difference of the two mIoUs has a paired bootstrap interval of 90 % (10,000 draws). The engine passes if the "
    "interval lies within the margin, and it is refused if the interval lies below the margin. In all other cases nothing is "
    "decided. Corruptions are not attacks: each is tested by itself, and the table shows the one that decides. An adversary "
    "with more steps, queries or knowledge than the pool could do more."
)


_TILED = (
    " The engine labels images larger than {side} x {side} in tiles, as a server does by the bundle's rule. The PyTorch model "
    "labels them whole, so the difference of the mIoUs includes the cost of the tiles. For equal labels, the model uses the "
    "same tiles."
)


def conclude(
    job: GateJob,
    measured: Measurements,
    speed: SpeedResult,
    thresholds: Thresholds,
    *,
    seconds: float,
    cost: ThroughputResult | None = None,
) -> GateResult:
    """
    Compare the measurements with the thresholds of the engine's precision, and reach a verdict.

    `seconds` is the duration of the whole gate. `cost` is reported and decides nothing.
    """
    data = describe_data(job.dataset, measured.names, usual_list=job.bundle.manifest.data.list_sha256)
    if job.bundle.manifest.schema_version > 2:
        data = data.model_copy(update={"scored_at": "file"})
    scheme = scheme_of(data.name, measured.names, data.clips)
    threats = tuple(check_threats(measured.pool, scheme, thresholds))
    transferred = twin_agreement(measured) < TWIN_AGREEMENT
    alarms = find_alarms(measured.pool, measured.probe, thresholds, transferred=transferred)
    latency = check_latency(speed, thresholds)
    findings = (
        *check_fidelity(measured.pool, measured.logit_error, thresholds),
        *check_calibration(measured.calibration, thresholds),
        *check_robustness(threats),
        *([] if job.budget.name == "quick" else check_corruptions_tried(measured.pool, thresholds)),
        *check_alarms(alarms),
        *([] if latency is None else [latency]),
    )
    clean = measured.pool[0]
    true_pixels = clean.reference[:, :, [0, 2]].sum((0, 2))  # (K,) true positives and false negatives
    shares = (true_pixels / true_pixels.sum()).tolist()
    return GateResult(
        bundle=speed.bundle,
        checkpoint=describe_reference(job.reference),
        data=data,
        precision=job.bundle.manifest.engine.effective_precision,
        budget=job.budget.name,
        protocol=PROTOCOL if job.tiles is None else PROTOCOL + _TILED.format(side=job.tiles.side),
        tiles=job.tiles,
        drawn=scheme.unit_name,
        verdict=worst(finding.verdict for finding in findings),
        findings=findings,
        warnings=tuple(_warnings(data, scheme)),
        limits=thresholds,
        threats=threats,
        members=tuple(_member(result) for result in measured.pool),
        perturbations=measured.perturbations,
        calibration=measured.calibration,
        classes=tuple(ClassEntry(name=n, share=s) for n, s in zip(job.dataset.classes.names, shares, strict=True)),
        transferred=transferred,
        alarms=alarms,
        probe=measured.probe,
        speed=speed,
        cost=cost,
        environment=describe_environment(torch.device("cpu"), seconds),
    )


def twin_agreement(measured: Measurements) -> float:
    """Return the lowest agreement of engine and twin, on clean images, on replayed ones and on the twin's."""
    members = (result for result in measured.pool if result.source in ("replay", "twin"))
    return min(measured.pilot.twin_agreement, *(result.disagreement.twin_agreement for result in members))


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """Refuse where anything is refused, pass where everything passes, and know nothing otherwise."""
    kinds = set(verdicts)
    return "refuse" if "refuse" in kinds else "inconclusive" if "inconclusive" in kinds else "pass"


def _warnings(data: DataEntry, scheme: Scheme) -> Iterator[str]:
    if scheme.kind == "images" and (frames := sequence_in(data.name, data.names, data.clips)) is not None:
        yield (
            f"File names such as {frames[0]} and {frames[1]} look like frames of video, but the images were drawn one by one. "
            "Neighbouring frames are alike, so the intervals are too narrow. Use --clips, or 'clips' in classes.yaml, to say "
            "which frames belong to one clip. If every image stands alone, use --clips '(.+)'."
        )


def passport_of(bundle: Bundle, result: GateResult) -> Passport:
    """Make the passport of a result."""
    return Passport(
        manifest_sha256=bundle.digest,
        verdict=result.verdict,
        budget=result.budget,
        judged_at=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        data=f"{result.data.name}, {result.data.split}",
        images=len(result.data.names),
        tiles=result.tiles,
        findings=result.findings,
        not_judged=result.limits.unset,
        versions=result.environment.versions,
    )


def _member(result: PoolResult) -> MemberRow:
    return MemberRow(
        source=result.source,
        label=result.label,
        epsilon=result.epsilon,
        images=int(result.attacked.sum()),
        reference=100 * miou(result.reference.sum(0)),
        engine=100 * miou(result.engine.sum(0)),
        agreement=result.disagreement.agreement,
        twin_agreement=result.disagreement.twin_agreement,
        band_agreement=result.disagreement.band_agreement,
        interior_agreement=result.disagreement.interior_agreement,
        margins=tuple(
            MarginRow(lowest=lowest, pixels=pixels, differing=differing)
            for lowest, pixels, differing in zip(
                MARGINS,
                result.disagreement.margins.sum(0).tolist(),
                result.disagreement.margins_differing.sum(0).tolist(),
                strict=True,
            )
        ),
    )
