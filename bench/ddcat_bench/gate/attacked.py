"""The gate's measurements: both models under the whole pool of attacks, unit by unit."""

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
from ddcat_bench.attack.judging import answers, count_each
from ddcat_bench.attack.passes import Meter, Victims, attack
from ddcat_bench.attack.probe import FORWARDS, run_probe
from ddcat_bench.attack.probe_results import Probe
from ddcat_bench.attack.suites import Plan
from ddcat_bench.gate.budget import Budget
from ddcat_bench.gate.case import Case
from ddcat_bench.gate.equivalence import KEPT_AT_LEAST
from ddcat_bench.gate.pool import (
    EPSILONS,
    TWIN_AGREES,
    Contenders,
    Judged,
    Part,
    engine_labels,
    fill_units,
    parts_of,
    read_units,
)
from ddcat_bench.gate.twin import twin_of
from ddcat_bench.subjects import judged_at_once, main_branch
from ddcat_bench.units import Units, open_units
from ddcat_train.attacks import Model, to_8_bit
from ddcat_train.attacks.seeds import seed_from
from ddcat_train.data.loader import evaluation_batches
from ddcat_train.pixels import to_pixels
from ddcat_train.ranks import ALONE, Ranks

__all__ = ["Attacked", "Pilot", "attack_pool", "chosen_parts"]

_PILOT = 12  # images on which the bound of the strong attacks is chosen
_LOGIT_IMAGES = 8


class Pilot(StrictModel):
    """What a few images told before all were attacked."""

    epsilon: float | None = Field(description="bound of the strong attacks; null: with the quick budget there are none")
    twin_agreement: Fraction = Field(description="least share of pixels, clean or attacked, that engine and twin label alike")


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
    contenders = Contenders(network, twin_of(case.bundle), engine)
    units = open_units(work, case.identity())
    if ranks.rank == 0:
        _pilot(case, contenders, units)
    ranks.gather(None)  # the first one has looked
    pilot = _pilot(case, contenders, units)
    parts = chosen_parts(case.budget, pilot, scores=case.scores)
    classes = len(case.dataset.classes)
    names: list[list[str]] = []
    for batch, (found, victims) in enumerate(_batches(case, case.images)):
        fill_units(
            units, contenders, parts, batch=batch, first=sum(map(len, names)), victims=victims, classes=classes,
            advance=advance, rank=ranks.rank, ranks=ranks.size,
        )  # fmt: skip
        names.append(found)
    if ranks.rank == 0 and pilot.epsilon is not None and units.kept("probe", Probe) is None:
        meter = Meter(advance)
        meter.allot(FORWARDS * case.probed // ranks.size)  # what one process sees is told for all
        model = meter.watch(contenders.twin)
        units.keep("probe", run_probe(model, case.dataset, epsilon=pilot.epsilon, images=case.probed, seed=case.budget.seed))
        meter.allot(0)
    ranks.gather(None)  # all have done their share
    judged = read_units(units, parts, [len(found) for found in names], classes)
    return Attacked(
        [name for found in names for name in found], pilot, judged, _logit_error(case, contenders), units.kept("probe", Probe)
    )


def _batches(case: Case, images: int) -> Iterator[tuple[list[str], Victims]]:
    place = 0
    for names, pixels, labels in evaluation_batches(case.dataset, batch_size=judged_at_once(case.bundle), limit=images):
        seeds = torch.tensor([seed_from(case.budget.seed, place + own) for own in range(len(names))])
        place += len(names)
        yield names, Victims(pixels.contiguous(memory_format=torch.channels_last), labels, seeds)


def _pilot(case: Case, contenders: Contenders, units: Units) -> Pilot:
    """Look at a few images: how strong an attack the reference withstands, and whether the twin is the engine."""
    if (known := units.kept("pilot", Pilot)) is not None:
        return known
    batches = [victims for _, victims in _batches(case, min(_PILOT, case.images))]
    epsilon = None
    alike = [_alike(contenders, [to_8_bit(victims.images, victims.images) for victims in batches])]
    if case.budget.name != "quick":
        epsilon, received = _strongest(case, contenders.reference, batches)
        alike.append(_alike(contenders, received))
    pilot = Pilot(epsilon=epsilon, twin_agreement=min(alike))
    units.keep("pilot", pilot)
    return pilot


def _alike(contenders: Contenders, batches: Sequence[Tensor]) -> float:
    """Share of the pixels of 8-bit images that engine and twin label alike."""
    alike = pixels = 0
    for received in batches:
        labels = torch.from_numpy(engine_labels(contenders.engine, received))
        alike += int((labels == answers(contenders.twin, received)).sum())
        pixels += labels.numel()
    return alike / pixels


def _strongest(case: Case, reference: Model, batches: Sequence[Victims]) -> tuple[float, list[Tensor]]:
    """Find the largest bound at which the reference keeps something, else the smallest; and the 8-bit images attacked at it."""
    for epsilon in reversed(EPSILONS):
        plan = Plan("PGD", epsilon, alpha=epsilon / 4, start="random", counted=(case.budget.steps,))
        counts, attacked = [], []
        for victims in batches:
            (found,) = attack(reference, plan, victims)
            attacked.append(to_8_bit(found.images, victims.images))
            counts += count_each(victims.labels, answers(reference, attacked[-1]), len(case.dataset.classes))
        if 100 * miou(np.sum(counts, axis=0)) >= KEPT_AT_LEAST:
            break
    return epsilon, attacked


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
        found = contenders.engine.infer(to_pixels(received)).logits
        if found is None:
            return None
        with torch.inference_mode():
            wanted = network.low_resolution_logits("main", network.features(received.float() / 255)).numpy()
        errors.append(np.abs(found - wanted).ravel())
        values.append(wanted.ravel())
    return float(np.quantile(np.concatenate(errors), 0.999) / np.concatenate(values).std())
