"""Aggregate the counts of all units into the result of a suite."""

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np

from ddcat.classes import IGNORE_INDEX, Classes
from ddcat.metrics import Counts, pixel_accuracy
from ddcat_bench.attack.alarms import raise_alarms
from ddcat_bench.attack.job import AttackJob
from ddcat_bench.attack.results import AttackResult, AttackRow, Claim, Probe, WorstCase
from ddcat_bench.attack.scoring import grey_levels
from ddcat_bench.attack.suites import SEA_LOSSES, AttackSpec, Case
from ddcat_bench.cli_options import ProtocolName
from ddcat_bench.describe import describe_data, describe_environment, describe_reference
from ddcat_bench.perturbation.results import PerturbationRow
from ddcat_bench.result_schema import CheckpointEntry, Scores
from ddcat_bench.work_units import Units
from ddcat_bench.worst_case import lowest_accuracy, worst_case

__all__ = ["PROTOCOLS", "aggregate", "policy"]

_FIGURES = (
    "Ignored pixels are neither attacked nor counted. mIoU sums the counts over all images first. Classes that are neither "
    "labelled nor predicted are left out of the mean. In 8-bit rows, the perturbation is rounded toward zero to whole grey "
    "levels, as a server would receive the image."
)
PROTOCOLS: dict[ProtocolName, str] = {
    "whole": "Whole images are attacked, not tiles: each has one consistent perturbation, made with full knowledge of the main "
    "branch. " + _FIGURES,
    "windows": "Sliding windows of {height} x {width} are attacked, two thirds of that apart, as in the paper's released code. "
    "Each window is attacked by itself, with full knowledge of the main branch, and the softmax is averaged where windows "
    "overlap. Images are resized in floats, and the softmax is resized back and compared with the labels of the files. For "
    "Cityscapes, both have the size of the windows. So no single adversarial image exists that anybody could send: a pixel may "
    "be perturbed differently in each window that shows it. The 8-bit rows are of windows, too. Clean images are averaged with "
    "their mirror image; attacked ones are not. The probe for masked gradients is on whole images. " + _FIGURES,
}
_SMALL = 0.025  # what the paper says that n = 10 and 20 change


def aggregate(
    job: AttackJob,
    units: Units,
    batches: Sequence[Sequence[str]],
    probe: Probe,
    perturbations: tuple[PerturbationRow, ...] = (),
) -> AttackResult:
    """
    Compute all figures, once all units are finished; `batches` names the images of each batch.

    Raises BenchError if every pixel is ignored.
    """
    counts: list[Counts] = []  # of each spec, (2, C, I, K, 3)
    seconds = 0.0
    for index in range(len(job.specs)):
        parts = [units.get(batch, index) for batch in range(len(batches))]
        counts.append(np.concatenate([part for part, _ in parts], axis=2))
        seconds += sum(spent for _, spent in parts)
    reference, classes = job.reference, job.dataset.classes
    rows = tuple(_rows(job, counts))
    names = [name for batch in batches for name in batch]
    return AttackResult(
        checkpoint=describe_reference(reference),
        data=describe_data(job.dataset, names, usual_list=reference.data.list_sha256),
        protocol=PROTOCOLS[job.protocol].format(height=job.crop[0], width=job.crop[1]),
        protocol_name=job.protocol,
        policy=policy(classes),
        background=None if classes.background is None else classes.names[classes.background],
        suite=job.suite,
        seed=job.seed,
        batch_size=job.batch_size,
        class_pixels=None if job.class_pixels is None else job.class_pixels.source,
        claims=tuple(_claims(rows)),
        worst_cases=tuple(_worst_cases(rows, classes.background)),
        rows=rows,
        perturbations=perturbations,
        probe=probe,
        alarms=raise_alarms(rows, probe, trained_steps=None if reference.attack is None else reference.attack["steps"]),
        environment=describe_environment(job.device, seconds + probe.seconds),
    )


def policy(classes: Classes) -> str:
    """Write how void pixels and the background class are counted."""
    void = f"Void: pixels labelled {IGNORE_INDEX} are left out everywhere, whatever is predicted there; they have no class."
    if classes.background is None:
        return f"{void} Background: these data have no such class, so there is no foreground mIoU."
    return (
        f"{void} Background: class {classes.background}, {classes.names[classes.background]}, is attacked and counted as every "
        "other and is part of the mIoU; foreground mIoU is the mean over the other classes of the same counts."
    )


def _rows(job: AttackJob, counts: Sequence[Counts]) -> Iterator[AttackRow]:
    background = job.dataset.classes.background
    makers = [describe_reference(surrogate) for surrogate in job.surrogates]
    for eight_bit in (False, True):
        for spec, of_spec in zip(job.specs, counts, strict=True):
            for case, of_case in zip(spec.cases, of_spec[int(eight_bit)], strict=True):
                if case.name != "clean" or not eight_bit:  # clean images have 8 bits
                    maker = None if spec.surrogate is None else makers[spec.surrogate]
                    yield _row(spec, case, eight_bit, Scores.of(of_case, background), maker)


def _row(spec: AttackSpec, case: Case, eight_bit: bool, scores: Scores, maker: CheckpointEntry | None) -> AttackRow:
    clean = case.name == "clean"
    epsilon = 0.0 if clean else spec.epsilon
    return AttackRow(
        name=case.name,
        epsilon=epsilon,
        alpha=0.0 if clean else spec.alpha,
        steps=case.steps,
        start=spec.start,
        eight_bit=eight_bit,
        grey_levels=float(grey_levels(epsilon)) if eight_bit else epsilon * 255,
        scores=scores,
        substitute=maker,
    )


def _worst_cases(rows: Sequence[AttackRow], background: int | None) -> Iterator[WorstCase]:
    """At each bound, the worst case over SEA's losses, and over all attacks if there are others."""
    for epsilon in sorted({row.epsilon for row in rows if row.name != "clean"}):
        for eight_bit in (False, True):
            every = [row for row in rows if (row.epsilon, row.eight_bit) == (epsilon, eight_bit) and row.name != "clean"]
            sea = [row for row in every if row.name in SEA_LOSSES]
            if sea:
                yield _worst("SEA", sea, background)
            if len({row.name for row in every}) > max(1, len(sea)):  # BIM alone is its own curve
                yield _worst("all", every, background)


def _worst(name: Literal["SEA", "all"], members: Sequence[AttackRow], background: int | None) -> WorstCase:
    counts = np.stack([row.scores.array() for row in members])  # (A, I, K, 3)
    chosen, lowest = worst_case(counts), lowest_accuracy(counts)
    images = np.arange(counts.shape[1])
    return WorstCase(
        name=name,
        epsilon=members[0].epsilon,
        eight_bit=members[0].eight_bit,
        members=tuple(row.label for row in members),
        chosen=tuple(chosen.tolist()),
        chosen_for_accuracy=tuple(lowest.tolist()),
        scores=Scores.of(counts[chosen, images], background),
        pixel_accuracy=pixel_accuracy(counts[lowest, images].sum(0)),
    )


def _claims(rows: Sequence[AttackRow]) -> Iterator[Claim]:
    """The paper's claim about longer attacks, if they were made."""
    mious = {row.steps: row.scores.miou for row in rows if row.name == "BIM" and not row.eight_bit}
    if not {7, 10, 20} <= mious.keys():
        return
    changes = {n: mious[n] - mious[7] for n in (10, 20)}
    yield Claim(
        claim=f"n = 10 and n = 20 change the mIoU by at most {_SMALL} against n = 7.",
        evidence=f"n = 7: {mious[7]:.3f}; " + ", ".join(f"n = {n}: {mious[n]:.3f} ({by:+.3f})" for n, by in changes.items()),
        held=all(abs(by) <= _SMALL for by in changes.values()),
    )
