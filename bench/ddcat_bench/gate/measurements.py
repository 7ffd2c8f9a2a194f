"""The gate's measurements: both models under the whole pool of attacks, unit by unit."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from ddcat.engines import Engine
from ddcat.metrics import miou
from ddcat.schema import Fraction, StrictModel
from ddcat_bench.attack.attacks import AttackBatch, Meter, attack
from ddcat_bench.attack.probe import FORWARDS, run_probe
from ddcat_bench.attack.results import Probe
from ddcat_bench.attack.scoring import count_victims, predict
from ddcat_bench.attack.suites import AttackSpec
from ddcat_bench.gate.budget import Budget
from ddcat_bench.gate.equivalence import KEPT_AT_LEAST
from ddcat_bench.gate.job import GateJob
from ddcat_bench.gate.pool import (
    CORRUPTED_SEVERITY,
    EPSILONS,
    TWIN_AGREEMENT,
    WORST,
    CorruptedRun,
    PoolResult,
    Run,
    Targets,
    attack_runs,
    corrupted_runs,
    engine_labels,
    fill_units,
    read_units,
)
from ddcat_bench.gate.reliability import measure_calibration
from ddcat_bench.gate.results import Calibration
from ddcat_bench.inputs import engine_batch_size, main_branch
from ddcat_bench.perturbation.measure import PerturbationJob, measure_perturbations
from ddcat_bench.perturbation.results import PerturbationRow
from ddcat_bench.tiled import as_served, tiled_model
from ddcat_bench.work_units import open_units
from ddcat_export.twin.twin import twin_of
from ddcat_train.attacks import Model
from ddcat_train.choices import CorruptionName
from ddcat_train.corruptions import COMMON
from ddcat_train.data.loader import as_tensors, evaluation_plan, read_samples
from ddcat_train.distributed.ranks import ALONE, Ranks
from ddcat_train.pixels import to_8_bit, to_pixels
from ddcat_train.seeds import derive_seed

__all__ = ["Measurements", "Pilot", "attack_pool", "chosen_runs", "gate_batches"]

_PILOT = 12  # images on which the bound of the strong attacks is chosen
_LOGIT_IMAGES = 8


class Pilot(StrictModel):
    """Measurements on a few images, before all are attacked."""

    epsilon: float | None = Field(description="Bound of the strong attacks; null: with the quick budget there are none.")
    twin_agreement: Fraction = Field(
        description="Least share of pixels, clean or attacked, that the engine and its twin label alike."
    )
    corruptions: tuple[CorruptionName, ...] = Field(
        description="The common corruptions that leave the PyTorch model least; none with the quick budget."
    )


class Measurements(NamedTuple):
    """Counts of both models under the whole pool."""

    names: list[str]
    pilot: Pilot
    pool: tuple[PoolResult, ...]
    logit_error: float | None
    probe: Probe | None
    perturbations: tuple[PerturbationRow, ...] = ()
    calibration: Calibration | None = None


def attack_pool(
    job: GateJob,
    engine: Engine,
    work: Path,
    advance: Callable[[int], None] = lambda forwards: None,
    *,
    ranks: Ranks = ALONE,
) -> Measurements:
    """
    Score both models on the whole pool, unit by unit, so that a run that was stopped continues.

    Several processes deal the units out among them, and find what one finds with as many threads.

    Parameters
    ----------
    engine : Engine
        Opened from its bundle.
    work : Path
        Folder of finished units, of all processes; it is left there.
    advance : callable, optional
        Called with about the number of images that a network has just seen in this process; in all, `GateJob.forwards`.
    ranks : Ranks, optional
        The processes.

    Returns
    -------
    Measurements
        The same in each process.

    Raises
    ------
    BenchError, DataError, EngineError
    """
    network = main_branch(job.reference, torch.device("cpu"))
    tiles, twin = job.tiles, twin_of(job.bundle)
    targets = Targets(network, twin, engine)
    if tiles is not None:
        served = as_served(engine, job.bundle.manifest)
        targets = Targets(network, tiled_model(twin, tiles), served, tiled_model(network, tiles))
    units = open_units(work, job.identity())
    if ranks.rank == 0:
        units.once("pilot", Pilot, lambda: _pilot(job, targets))
    ranks.gather(None)  # the first one has looked
    pilot = units.once("pilot", Pilot, lambda: _pilot(job, targets))
    runs = chosen_runs(job.budget, pilot, scores=job.scores)
    classes = len(job.dataset.classes)
    names: list[list[str]] = []
    for batch, (batch_names, victims) in enumerate(gate_batches(job, job.images)):
        fill_units(
            units, targets, runs, batch=batch, first=sum(map(len, names)), victims=victims, classes=classes,
            advance=advance, rank=ranks.rank, ranks=ranks.size,
        )  # fmt: skip
        names.append(batch_names)
    if ranks.rank == 0:
        if pilot.epsilon is not None:
            units.once("probe", Probe, lambda: _probe(job, targets.twin, pilot.epsilon, advance, ranks.size))
        units.once("calibration", Calibration, lambda: _calibration(job, targets))
    perturbations = measure_perturbations(_perturbations(job, targets), units, ranks=ranks, advance=advance)  # waits for all
    pool = read_units(units, runs, [len(each) for each in names], classes)
    return Measurements(
        [name for each in names for name in each], pilot, pool, _logit_error(job, targets), units.kept("probe", Probe),
        perturbations, units.kept("calibration", Calibration),
    )  # fmt: skip


def _probe(job: GateJob, twin: Model, epsilon: float | None, advance: Callable[[int], None], processes: int) -> Probe:
    assert epsilon is not None
    meter = Meter(advance)
    meter.allot(FORWARDS * job.probed // processes)  # one process counts for all
    probe = run_probe(meter.watch(twin), job.dataset, epsilon=epsilon, images=job.probed, seed=job.budget.seed)
    meter.allot(0)
    return probe


def _calibration(job: GateJob, targets: Targets) -> Calibration:
    temperature = job.bundle.manifest.temperature
    batches = (victims for _, victims in gate_batches(job, job.images))
    return measure_calibration(targets, batches, temperature=1.0 if temperature is None else temperature.value)


def _perturbations(job: GateJob, targets: Targets) -> PerturbationJob:
    return dataclasses.replace(
        job.perturbations(),
        makers={"model": targets.reference, "twin": targets.twin},
        judges=(
            lambda images: predict(targets.reference, images).numpy(),
            lambda images: engine_labels(targets.engine, images),
        ),
    )


def gate_batches(job: GateJob, images: int) -> Iterator[tuple[list[str], AttackBatch]]:
    """Read images as the bundle says: names, what the engine is fed, and the labels that its masks are scored by."""
    place = 0
    for indices in evaluation_plan(job.dataset, batch_size=engine_batch_size(job.bundle), limit=images):
        samples = read_samples(job.dataset, indices)
        names, pixels, labels = as_tensors(samples)
        seeds = torch.tensor([derive_seed(job.budget.seed, place + own) for own in range(len(names))])
        place += len(names)
        full = tuple(sample.full_labels for sample in samples if sample.full_labels is not None)
        yield (
            names,
            AttackBatch(
                pixels.contiguous(memory_format=torch.channels_last),
                labels,
                seeds,
                full_labels=full if job.at_file_size else None,
            ),
        )


def _pilot(job: GateJob, targets: Targets) -> Pilot:
    """Measure on a few images how strong an attack the reference withstands, and if the twin agrees with the engine."""
    batches = [victims for _, victims in gate_batches(job, min(_PILOT, job.images))]
    epsilon = None
    alike = [_alike(targets, [to_8_bit(victims.images, victims.images) for victims in batches])]
    worst: tuple[CorruptionName, ...] = ()
    if job.budget.name != "quick":
        epsilon, received = _strongest(job, targets.reference, batches)
        alike.append(_alike(targets, received))
        worst = _worst(job, targets, batches)
    return Pilot(epsilon=epsilon, twin_agreement=min(alike), corruptions=worst)


def _worst(job: GateJob, targets: Targets, batches: Sequence[AttackBatch]) -> tuple[CorruptionName, ...]:
    """Return the common corruptions that leave the reference the least mIoU; none for images of other bands than three."""
    classes = len(job.dataset.classes)
    if job.dataset.rule.channels != 3:  # corruptions are of red, green and blue
        return ()
    left: dict[CorruptionName, float] = {}
    for name in COMMON:
        run, counts = CorruptedRun("corrupted", name, CORRUPTED_SEVERITY), []
        for victims in batches:
            [received] = run.received(targets, victims, classes)
            counts += count_victims(victims, predict(targets.reference, received), classes)
        left[name] = miou(np.sum(counts, axis=0))
    return tuple(sorted(left, key=lambda name: left[name])[:WORST])


def _alike(targets: Targets, batches: Sequence[Tensor]) -> float:
    """Share of the pixels of 8-bit images that engine and twin label alike."""
    alike = pixels = 0
    for received in batches:
        labels = torch.from_numpy(engine_labels(targets.engine, received))
        alike += int((labels == predict(targets.twin, received)).sum())
        pixels += labels.numel()
    return alike / pixels


def _strongest(job: GateJob, reference: Model, batches: Sequence[AttackBatch]) -> tuple[float, list[Tensor]]:
    """Return the largest bound at which the reference keeps some mIoU, else the smallest, and the 8-bit images at it."""
    for epsilon in reversed(EPSILONS):
        spec = AttackSpec("PGD", epsilon, alpha=epsilon / 4, start="random", counted=(job.budget.steps,))
        counts, attacked = [], []
        for victims in batches:
            (adversarial,) = attack(reference, spec, victims)
            attacked.append(to_8_bit(adversarial.images, victims.images))
            counts += count_victims(victims, predict(reference, attacked[-1]), len(job.dataset.classes))
        if 100 * miou(np.sum(counts, axis=0)) >= KEPT_AT_LEAST:
            break
    return epsilon, attacked


def chosen_runs(budget: Budget, pilot: Pilot, *, scores: bool = False) -> tuple[Run, ...]:
    """List the attacks of a budget and, but for the quick one, the corruptions, given the pilot's measurements."""
    # where the twin is another model, its attacks are transferred ones, and the engine itself is asked more
    queries = budget.queries * (1 if pilot.twin_agreement >= TWIN_AGREEMENT else 2)
    attacks = attack_runs(pilot.epsilon, budget._replace(queries=queries), scores=scores)
    return (*attacks, *corrupted_runs(pilot.corruptions))


def _logit_error(job: GateJob, targets: Targets) -> float | None:
    """The 99.9th percentile of the error of a logit, in standard deviations of the reference's; None where it gives none."""
    network = targets.reference
    errors, values = [], []
    for _, victims in gate_batches(job, min(_LOGIT_IMAGES, job.images)):
        received = to_8_bit(victims.images, victims.images)
        logits = targets.engine.infer(to_pixels(received)).logits
        if logits is None:
            return None
        with torch.inference_mode():
            expected = network.low_resolution_logits("main", network.features(received.float() / 255)).numpy()
        errors.append(np.abs(logits - expected).ravel())
        values.append(expected.ravel())
    return float(np.quantile(np.concatenate(errors), 0.999) / np.concatenate(values).std())
