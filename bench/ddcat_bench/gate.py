"""`ddcat-bench gate`: whether an engine is as accurate, as robust and as fast as claimed: yes, no, or not known."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field

from ddcat import provenance
from ddcat.bundle import Bundle
from ddcat.files import write_text
from ddcat.passport import Passport, Verdict
from ddcat.scores import miou
from ddcat_bench.bootstrap import scheme_of
from ddcat_bench.cost import CostResult
from ddcat_bench.equivalence import KEPT_AT_LEAST
from ddcat_bench.findings import Probe
from ddcat_bench.flips import MARGINS
from ddcat_bench.gate_findings import (
    find_alarms,
    judge_alarms,
    judge_fidelity,
    judge_latency,
    judge_robustness,
    judge_threats,
)
from ddcat_bench.gate_results import ClassEntry, GateResult, MarginRow, MemberRow
from ddcat_bench.judging import answers, count_each
from ddcat_bench.limits import Limits
from ddcat_bench.passes import Victims, attack
from ddcat_bench.pool import EPSILONS, TWIN_AGREES, Contenders, Judged, Part, engine_labels, fill_units, parts_of, read_units
from ddcat_bench.probe import run_probe
from ddcat_bench.results import read_result, to_json
from ddcat_bench.schema import Fraction, Strict
from ddcat_bench.subjects import describe_checkpoint, describe_data, describe_environment, main_branch
from ddcat_bench.suites import Plan
from ddcat_bench.timing_results import SpeedResult
from ddcat_bench.twin import Twin
from ddcat_bench.units import open_units
from ddcat_serve.engines import Engine
from ddcat_train.attacks import Model, to_8_bit
from ddcat_train.checkpoints import Checkpoint
from ddcat_train.data import Dataset
from ddcat_train.data.loader import evaluation_batches
from ddcat_train.ranks import ALONE, Ranks

__all__ = ["Attacked", "Budget", "Case", "attack_pool", "chosen_parts", "conclude", "passport_of", "worst"]

PROTOCOL = (
    "The engine and its reference, the PyTorch main branch, label the same 8-bit images. Under each threat both meet the worst "
    "of a shared pool of attacks, chosen for each image and each of them so that its own mIoU is low (greedy, once, on all "
    "images): attacks made on the reference and replayed, made with the gradients of the engine's own graph, made by asking "
    "the engine (for its labels, and for its logits where it gives them), and noise. The difference of the two data-set mIoUs "
    "has a paired bootstrap interval of 90 % (10,000 draws), which passes within the margin either way, is refused beyond it, "
    "and decides nothing otherwise. An adversary with more steps, queries or knowledge than the pool has could do more."
)

_BATCH = 8
_PILOT = 12  # images on which the bound of the strong attacks is chosen
_LOGIT_IMAGES = 8
_SEED_STRIDE = 1_000_003  # so that the images of two seeds share no seed of their own

BudgetName = Literal["default", "quick"]


class Budget(NamedTuple):
    """How much the gate attacks: see `ddcat_bench.pool.parts_of`."""

    name: BudgetName = "default"
    steps: int = 20
    queries: int = 500
    every: int = 10
    seed: int = 0


class Case(NamedTuple):
    """What is to be judged."""

    bundle: Bundle
    checkpoint: Checkpoint
    dataset: Dataset
    limit: int | None = None
    budget: Budget = Budget()

    @property
    def images(self) -> int:
        """How many are judged."""
        return len(self.dataset) if self.limit is None else min(self.limit, len(self.dataset))

    @property
    def forwards(self) -> int:
        """How often about a network sees an image in the pool: for the progress."""
        parts = parts_of(
            None if self.budget.name == "quick" else EPSILONS[0], steps=self.budget.steps, queries=self.budget.queries,
            every=self.budget.every, quick=self.budget.name == "quick", scores=self.scores,
        )  # fmt: skip
        return round(self.images * sum(part.forwards for part in parts))

    @property
    def scores(self) -> bool:
        """Whether the engine gives its logits."""
        return any(entry.name == "logits" for entry in self.bundle.manifest.outputs)

    def identity(self) -> dict[str, Any]:
        """All that the counts depend on, as JSON."""
        return {
            "bundle": self.bundle.digest,
            "checkpoint": self.checkpoint.sha256(),
            "data": self.dataset.list_sha256(),
            "images": self.images,
            "budget": list(self.budget),
            "code": provenance.git_commit(),
        }


class Pilot(Strict):
    """What a few images told before all were attacked."""

    epsilon: float | None = Field(description="bound of the strong attacks; null: with the quick budget there are none")
    twin_agreement: Fraction = Field(description="share of pixels that engine and twin label alike")


class Attacked(NamedTuple):
    """What the pool left."""

    names: list[str]
    pilot: Pilot
    judged: tuple[Judged, ...]
    logit_error: float | None
    probe: Probe | None


def attack_pool(
    case: Case,
    engine: Engine,
    work: Path,
    advance: Callable[[int], None] = lambda forwards: None,
    *,
    ranks: Ranks = ALONE,
) -> Attacked:
    """
    Judge both models on the whole pool, unit by unit, so that what was stopped continues.

    Several processes deal the units out among them, and find what one finds with as many threads.

    Parameters
    ----------
    case : Case
    engine : Engine
        Opened from its bundle.
    work : Path
        Folder of finished units, of all processes; it is left there.
    advance : callable, optional
        Is told how many images a network has just seen in this process, about; over all, `Case.forwards`.
    ranks : Ranks, optional
        The processes.

    Returns
    -------
    Attacked
        The same in each process.

    Raises
    ------
    BenchError, DataError, EngineError
    """
    network = main_branch(case.checkpoint, torch.device("cpu"))
    contenders = Contenders(network, Twin(case.bundle.files[_graph(case.bundle)]), engine)
    units = open_units(work, case.identity())
    if ranks.rank == 0:
        _pilot(case, contenders, work / "pilot.json")
    ranks.gather(None)  # the first one has looked
    pilot = _pilot(case, contenders, work / "pilot.json")
    parts = chosen_parts(case.budget, pilot, scores=case.scores)
    classes = len(case.dataset.classes)
    names: list[list[str]] = []
    for batch, (found, victims) in enumerate(_batches(case, case.images)):
        fill_units(
            units, contenders, parts, batch=batch, first=sum(map(len, names)), victims=victims, classes=classes,
            advance=advance, rank=ranks.rank, ranks=ranks.size,
        )  # fmt: skip
        names.append(found)
    if ranks.rank == 0 and pilot.epsilon is not None and units.probe() is None:
        units.put_probe(run_probe(contenders.twin, case.dataset, epsilon=pilot.epsilon, images=4, seed=case.budget.seed))
    ranks.gather(None)  # all have done their share
    judged = read_units(units, parts, [len(found) for found in names], classes)
    return Attacked([name for found in names for name in found], pilot, judged, _logit_error(case, contenders), units.probe())


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
    scheme = scheme_of(data.name, attacked.names)
    threats = tuple(judge_threats(attacked.judged, scheme, limits))
    transferred = attacked.pilot.twin_agreement < TWIN_AGREES
    alarms = find_alarms(attacked.judged, attacked.probe, limits, transferred=transferred)
    findings = (
        *judge_fidelity(attacked.judged, attacked.logit_error, limits),
        *judge_robustness(threats),
        *judge_alarms(alarms),
        judge_latency(speed, limits),
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
        drawn={"images": "images", "clips": "clips of frames", "blocks": f"circular blocks of {scheme.block} frames"}[
            scheme.kind
        ],
        verdict=worst(finding.verdict for finding in findings),
        findings=findings,
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


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """Refuse where anything is refused, pass where everything passes, and know nothing otherwise."""
    found = set(verdicts)
    return "refuse" if "refuse" in found else "inconclusive" if "inconclusive" in found else "pass"


def passport_of(bundle: Bundle, result: GateResult) -> Passport:
    """Give what travels with the bundle."""
    return Passport(
        manifest_sha256=bundle.digest,
        verdict=result.verdict,
        budget=result.budget,
        data=f"{result.data.name}, {result.data.split}",
        images=len(result.data.names),
        findings=result.findings,
        versions=result.environment.versions,
    )


def _graph(bundle: Bundle) -> str:
    """Name the ONNX file that the engine computes: the one that it loads, or that its plan was built from."""
    engine = bundle.manifest.engine
    return engine.file if engine.file.endswith(".onnx") else engine.graph


def _batches(case: Case, images: int) -> Iterator[tuple[list[str], Victims]]:
    place, batch = 0, case.bundle.manifest.shapes.batch
    size = max(batch.minimum, min(_BATCH, batch.maximum or _BATCH))
    for names, pixels, labels in evaluation_batches(case.dataset, batch_size=size, limit=images):
        seeds = torch.arange(place, place + len(names)) + case.budget.seed * _SEED_STRIDE
        place += len(names)
        yield names, Victims(pixels.contiguous(memory_format=torch.channels_last), labels, seeds)


def _pilot(case: Case, contenders: Contenders, file: Path) -> Pilot:
    """Look at a few images: how strong an attack the reference withstands, and whether the twin is the engine."""
    if file.is_file():
        return read_result(file, Pilot)
    batches = [victims for _, victims in _batches(case, min(_PILOT, case.images))]
    alike = pixels = 0
    for victims in batches:
        received = to_8_bit(victims.images, victims.images)
        labels = torch.from_numpy(engine_labels(contenders.engine, received))
        alike += int((labels == answers(contenders.twin, received)).sum())
        pixels += labels.numel()
    epsilon = None if case.budget.name == "quick" else _strongest(case, contenders.reference, batches)
    pilot = Pilot(epsilon=epsilon, twin_agreement=alike / pixels)
    write_text(file, to_json(pilot))
    return pilot


def _strongest(case: Case, reference: Model, batches: Sequence[Victims]) -> float:
    """Find the largest bound at which the reference keeps something, or give the smallest."""
    for epsilon in reversed(EPSILONS):
        plan = Plan("PGD", epsilon, alpha=epsilon / 4, start="random", counted=(case.budget.steps,))
        counts = []
        for victims in batches:
            (found,) = attack(reference, plan, victims)
            labels = answers(reference, to_8_bit(found.images, victims.images))
            counts += count_each(victims.labels, labels, len(case.dataset.classes))
        if 100 * miou(np.sum(counts, axis=0)) >= KEPT_AT_LEAST:
            return epsilon
    return EPSILONS[0]


def chosen_parts(budget: Budget, pilot: Pilot, *, scores: bool = False) -> tuple[Part, ...]:
    """List the attacks that a budget allows after what the pilot told."""
    # where the twin is another model, its attacks are transferred ones, and the engine itself is asked more
    queries = budget.queries * (1 if pilot.twin_agreement >= TWIN_AGREES else 2)
    quick = budget.name == "quick"
    return parts_of(pilot.epsilon, steps=budget.steps, queries=queries, every=budget.every, quick=quick, scores=scores)


def _logit_error(case: Case, contenders: Contenders) -> float | None:
    """The 99.9th percentile of the error of a logit, in standard deviations of the reference's; None where it gives none."""
    network = contenders.reference
    errors, values = [], []
    for _, victims in _batches(case, min(_LOGIT_IMAGES, case.images)):
        received = to_8_bit(victims.images, victims.images)
        found = contenders.engine.infer(np.ascontiguousarray(received.permute(0, 2, 3, 1).numpy())).logits
        if found is None:
            return None
        with torch.inference_mode():
            wanted = network.low_resolution_logits("main", network.features(received.float() / 255)).numpy()
        errors.append(np.abs(found - wanted).ravel())
        values.append(wanted.ravel())
    return float(np.quantile(np.concatenate(errors), 0.999) / np.concatenate(values).std())


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
