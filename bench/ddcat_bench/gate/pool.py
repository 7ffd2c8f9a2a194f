"""
The pool of images that an engine and its reference are both judged on: clean ones, and attacks made in four ways.

- replay: made on the PyTorch model;
- twin: made with the gradients of the engine's own graph (`ddcat_bench.gate.twin`);
- engine: made by asking the engine itself, for its labels, and where it gives them for its logits;
- noise: random signs at the bound, which any attack should beat.

All are rounded to 8 bits, as a server receives them. Attacks on one precision transfer poorly to another, so a replay alone
would overstate what an engine withstands.
"""

import time
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from ddcat.engines import Engine
from ddcat.metrics import Counts
from ddcat_bench.attack.judging import answers, count_each
from ddcat_bench.attack.passes import Victims, attack
from ddcat_bench.attack.suites import BIM, Plan, PlanName
from ddcat_bench.gate.flips import Flips, count_flips
from ddcat_bench.gate.twin import Twin
from ddcat_bench.units import Units
from ddcat_train.attacks import Model, to_8_bit
from ddcat_train.networks import Segmenter
from ddcat_train.pixels import nearest_8_bit, to_pixels

__all__ = ["EPSILONS", "TWIN_AGREES", "Contenders", "Judged", "Part", "engine_labels", "fill_units", "parts_of", "read_units"]

EPSILONS = tuple(level / 255 for level in (1, 2, 4, 8))  # 0.5/255 would change no pixel of an image of 8 bits

TWIN_AGREES = 0.999  # share of equal labels below which a twin is another model, and attacks on it are transferred

_FLIPS = 7  # rows of three that hold the numbers of `Flips`

Source = Literal["replay", "twin", "engine", "noise"]


class Part(NamedTuple):
    """
    An attack of the pool.

    Attributes
    ----------
    source : "replay", "twin", "engine" or "noise"
    plan : Plan
    every : int
        Of the images, every how many are attacked: 1 for all. Others count as the replay of the same bound leaves them.
    """

    source: Source
    plan: Plan
    every: int = 1

    @property
    def forwards(self) -> float:
        """How often about a network sees an image in it: for the progress."""
        return self.plan.forwards / self.every


class Contenders(NamedTuple):
    """What the pool is made on, and what is judged on it."""

    reference: Segmenter
    twin: Twin
    engine: Engine


class Judged(NamedTuple):
    """
    Counts of one case of a part, of all images.

    Attributes
    ----------
    source : Source
    label : str
        BIM, n = 3, or PGD, n = 10.
    epsilon : float
    reference, engine : (I, K, 3) int64
    flips : Flips
        Of the I' attacked images.
    attacked : (I,) bool
        Which images it was made on.
    """

    source: Source
    label: str
    epsilon: float
    reference: Counts
    engine: Counts
    flips: Flips
    attacked: npt.NDArray[np.bool_]


def parts_of(
    epsilon: float | None,
    *,
    steps: int = 20,
    queries: int = 500,
    every: int = 10,
    quick: bool = False,
    scores: bool = False,
) -> tuple[Part, ...]:
    """
    List the attacks: the paper's BIM, and the strongest at a bound.

    Parameters
    ----------
    epsilon : float or None
        The bound of the strong ones; None: there are none.
    steps : int
        Of each gradient attack at it.
    queries : int
        Of an attack that asks the engine.
    every : int
        Of the images, every how many that one is made on: it asks an engine that often for each.
    quick : bool
        The clean images and BIM, n = 3, alone.
    scores : bool
        Whether the engine gives its logits, which Square then asks for.
    """
    counted = (3,) if quick else (3, 7)
    parts = [Part("replay", BIM._replace(counted=(0, *counted))), Part("twin", BIM._replace(counted=counted))]
    if epsilon is not None:
        names: tuple[PlanName, ...] = ("PGD", "CosPGD")
        strong = [Plan(name, epsilon, alpha=epsilon / 4, start="random", counted=(steps,)) for name in names]
        parts += [Part(source, plan) for source in ("replay", "twin") for plan in strong]
        parts.append(Part("noise", _asked("noise", epsilon, 3)))
        parts.append(Part("engine", _asked("DLA", epsilon, queries), every))
        if scores:
            parts.append(Part("engine", _asked("Square", epsilon, queries), every))
    return tuple(parts)


def _asked(name: PlanName, epsilon: float, queries: int) -> Plan:
    return Plan(name, epsilon, alpha=0.0, start="clean", counted=(queries,), eight_bit=True)


def fill_units(
    units: Units,
    contenders: Contenders,
    parts: Sequence[Part],
    *,
    batch: int,
    first: int,
    victims: Victims,
    classes: int,
    advance: Callable[[int], None],
    rank: int = 0,
    ranks: int = 1,
) -> None:
    """
    Judge one batch under one process's share of the parts, those that are not finished already.

    Parameters
    ----------
    units : Units
    contenders : Contenders
    parts : sequence of Part
    batch : int
        Its number.
    first : int
        The place of its first image among all.
    victims : Victims
    classes : int
    advance : callable
        Is told of images times forwards.
    rank, ranks : int
        Place of this process, and number of all.
    """
    count = len(victims.images)
    for place, part in enumerate(parts):
        if (batch + place) % ranks != rank:  # shifted: each process has some of every part
            continue
        if not units.has(batch, place):
            began = time.monotonic()
            chosen = np.arange(first, first + count) % part.every == 0
            counts = _judge(contenders, part, _some(victims, chosen), classes) if chosen.any() else _nothing(part, classes)
            units.put(batch, place, counts, time.monotonic() - began)
        advance(round(count * part.forwards))


def read_units(units: Units, parts: Sequence[Part], sizes: Sequence[int], classes: int) -> tuple[Judged, ...]:
    """
    Put the finished units of all batches together.

    Parameters
    ----------
    units : Units
    parts : sequence of Part
    sizes : sequence of int
        Images in each batch.
    classes : int

    Returns
    -------
    tuple of Judged
        One for each case of each part.
    """
    images = sum(sizes)
    found: list[Judged] = []
    for place, part in enumerate(parts):
        attacked = np.arange(images) % part.every == 0
        whole = np.concatenate([units.get(batch, place)[0] for batch in range(len(sizes))], axis=1)  # (C, I', 2K+F, 3)
        for case, values in zip(part.plan.cases, whole, strict=True):
            reference, engine = values[:, :classes], values[:, classes : 2 * classes]
            numbers = values[:, 2 * classes :].reshape(len(values), -1)
            if not attacked.all():
                base = next(j for j in found if j.source == "replay" and j.epsilon == part.plan.epsilon)
                reference, engine = (
                    _placed(attacked, new, old) for new, old in ((reference, base.reference), (engine, base.engine))
                )
            found.append(
                Judged(
                    source=part.source,
                    label="clean" if case.name == "clean" else f"{case.name}, n = {case.steps}",
                    epsilon=0.0 if case.name == "clean" else part.plan.epsilon,
                    reference=reference,
                    engine=engine,
                    flips=Flips.from_array(numbers),
                    attacked=attacked,
                )
            )
    return tuple(found)


def _placed(where: npt.NDArray[np.bool_], new: Counts, old: Counts) -> Counts:
    whole = old.copy()
    whole[where] = new
    return whole


def _some(victims: Victims, chosen: npt.NDArray[np.bool_]) -> Victims:
    kept = torch.from_numpy(chosen)
    return victims._replace(images=victims.images[kept], labels=victims.labels[kept], seeds=victims.seeds[kept])


def _nothing(part: Part, classes: int) -> Counts:
    return np.zeros((len(part.plan.cases), 0, 2 * classes + _FLIPS, 3), np.int64)


def _judge(contenders: Contenders, part: Part, victims: Victims, classes: int) -> Counts:
    """Counts of the reference, of the engine, and in the last rows those of `Flips`: (C, N, 2 K + F, 3)."""
    makers: dict[Source, Model] = {
        "replay": contenders.reference,
        "twin": contenders.twin,
        "engine": lambda images: (_scores if part.plan.name == "Square" else _as_logits)(contenders.engine, images, classes),
        "noise": contenders.reference,
    }
    cases = []
    for found in attack(makers[part.source], part.plan, victims):
        received = to_8_bit(found.images, victims.images)
        engine = torch.from_numpy(engine_labels(contenders.engine, received))
        twin = answers(contenders.twin, received)
        with torch.no_grad():
            logits = contenders.reference(received.float() / 255)
        rows = [np.stack(count_each(victims.labels, labels, classes)) for labels in (logits.argmax(1), engine)]
        numbers = count_flips(victims.labels, logits, engine, twin).to_array()
        padded = np.pad(numbers, ((0, 0), (0, 3 * _FLIPS - numbers.shape[1]))).reshape(len(numbers), _FLIPS, 3)
        cases.append(np.concatenate([*rows, padded], axis=1))
    return np.stack(cases)


def engine_labels(engine: Engine, received: Tensor) -> npt.NDArray[np.uint8]:
    """Let an engine label (N, 3, H, W) uint8 images."""
    return engine.infer(to_pixels(received)).labels


def _scores(engine: Engine, images: Tensor, classes: int) -> Tensor:
    """The engine's own logits of the image in 8 bits, at its full size."""
    found = engine.infer(to_pixels(nearest_8_bit(images))).logits
    assert found is not None  # else nobody asks for them
    return F.interpolate(torch.from_numpy(found), size=images.shape[2:], mode="bilinear", align_corners=True)


def _as_logits(engine: Engine, images: Tensor, classes: int) -> Tensor:
    """What an attack on labels takes the argmax of: 1 at the engine's label of the image in 8 bits."""
    labels = torch.from_numpy(engine_labels(engine, nearest_8_bit(images))).long()
    return torch.nn.functional.one_hot(labels, classes).permute(0, 3, 1, 2).float()
