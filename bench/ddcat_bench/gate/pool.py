"""
The pool of images that an engine and its reference are evaluated on: clean images, and attacks made in four ways.

- replay: made on the PyTorch model;
- twin: made with the gradients of the engine's own graph (`ddcat_export.twin`);
- engine: made with queries to the engine itself, for its labels, and for its logits if it returns them;
- noise: random signs at the bound, which any attack should beat.

Beside them are images that nobody attacked: corrupted ones, and those of another camera or codec.

All are rounded to 8 bits, as a server receives them. Attacks on one precision transfer poorly to another, so a replay alone
would overstate what an engine withstands.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ddcat.engines import Engine
from ddcat.metrics import Counts
from ddcat_bench.attack.attacks import AttackBatch, attack
from ddcat_bench.attack.scoring import count_victims, predict
from ddcat_bench.attack.suites import BIM, AttackSpec, SpecName
from ddcat_bench.gate.budget import Budget
from ddcat_bench.gate.disagreement import Disagreement, count_disagreement
from ddcat_bench.work_units import Units
from ddcat_train.attacks import Model
from ddcat_train.choices import CorruptionName
from ddcat_train.corruptions import CORRUPTIONS, corrupt
from ddcat_train.networks import Segmenter
from ddcat_train.pixels import nearest_8_bit, to_8_bit, to_pixels
from ddcat_train.seeds import derive_seed

__all__ = [
    "CODEC",
    "CORRUPTED_SEVERITY",
    "EPSILONS",
    "TWIN_AGREEMENT",
    "WORST",
    "AttackRun",
    "CorruptedRun",
    "PoolResult",
    "Run",
    "Targets",
    "attack_runs",
    "corrupted_runs",
    "engine_labels",
    "fill_units",
    "read_units",
]

EPSILONS = tuple(level / 255 for level in (1, 2, 4, 8))  # 0.5/255 would change no pixel of an image of 8 bits

TWIN_AGREEMENT = 0.999  # share of equal labels below which a twin is another model, and attacks on it are transferred

_DISAGREEMENT = 7  # rows of three that hold the numbers of `Disagreement`

AttackSource = Literal["replay", "twin", "engine", "noise"]
ShiftSource = Literal["corrupted", "codec"]
Source = AttackSource | ShiftSource

CODEC: tuple[tuple[CorruptionName, int], ...] = (  # with their severities
    ("jpeg", 5), ("webp", 5), ("chroma_subsampling", 5), ("decoder", 5), ("resize_kernel", 5), ("bit_depth", 3),
    ("gamma_dark", 3), ("gamma_bright", 3), ("underexposed", 4), ("overexposed", 3), ("white_balance_warm", 3),
    ("white_balance_cold", 3),
)  # fmt: skip
CORRUPTED_SEVERITY, WORST = 3, 5  # of the common corruptions, those that leave the reference least


class AttackRun(NamedTuple):
    """An attack of the pool on every Nth image (`stride`). The others count as the replay of the same bound leaves them."""

    source: AttackSource
    spec: AttackSpec
    stride: int = 1

    @property
    def forwards(self) -> float:
        """Approximate number of forwards of an image, for the progress bar."""
        return self.spec.forwards / self.stride

    @property
    def cases(self) -> tuple[tuple[str, float], ...]:
        """Label and bound of each set of images that it gives."""
        return tuple(
            ("clean", 0.0) if case.name == "clean" else (f"{case.name}, n = {case.steps}", self.spec.epsilon)
            for case in self.spec.cases
        )

    def received(self, targets: "Targets", victims: AttackBatch, classes: int) -> Iterator[Tensor]:
        """Make the images of each case, (N, 3, H, W) uint8."""
        makers: dict[AttackSource, Model] = {
            "replay": targets.reference,
            "twin": targets.twin,
            "engine": lambda images: (
                _scores(targets, images) if self.spec.name == "Square" else _as_logits(targets.engine, images, classes)
            ),
            "noise": targets.reference,
        }
        for adversarial in attack(makers[self.source], self.spec, victims):
            yield to_8_bit(adversarial.images, victims.images)


class CorruptedRun(NamedTuple):
    """A corruption of all images: a key of `ddcat_train.corruptions.CORRUPTIONS`, at a severity of 1 to 5."""

    source: ShiftSource
    name: CorruptionName
    severity: int

    @property
    def stride(self) -> int:
        """1: no image is left out."""
        return 1

    @property
    def forwards(self) -> float:
        """Approximate number of forwards of an image, for the progress bar."""
        return 2

    @property
    def cases(self) -> tuple[tuple[str, float], ...]:
        """Label of its images, and a bound of 0: it has none."""
        return ((f"{self.name}, severity {self.severity}", 0.0),)

    def received(self, targets: "Targets", victims: AttackBatch, classes: int) -> Iterator[Tensor]:
        """Make its images, (N, 3, H, W) uint8."""
        place = tuple(CORRUPTIONS).index(self.name)
        pixels = to_pixels(nearest_8_bit(victims.images))
        changed = [
            corrupt(image, self.name, severity=self.severity, seed=derive_seed(seed, place, self.severity))
            for image, seed in zip(pixels, victims.seeds.tolist(), strict=True)
        ]
        yield torch.from_numpy(np.stack(changed)).permute(0, 3, 1, 2)


Run = AttackRun | CorruptedRun


class Targets(NamedTuple):
    """The models that the pool is made on and evaluated on; the reference also `tiled`, if engine and twin cut images."""

    reference: Segmenter
    twin: Model
    engine: Engine
    tiled: Model | None = None


class PoolResult(NamedTuple):
    """Counts of one case of a run, of all I images, (I, K, 3) int64; disagreement is of those that were attacked, (I,) bool."""

    source: Source
    label: str
    epsilon: float
    reference: Counts
    engine: Counts
    disagreement: Disagreement
    attacked: npt.NDArray[np.bool_]


def attack_runs(epsilon: float | None, budget: Budget = Budget(), *, scores: bool = False) -> tuple[AttackRun, ...]:  # noqa: B008 -- a tuple
    """
    List the attacks: the paper's BIM, and the strongest at a bound; of the quick budget BIM, n = 3, alone.

    Parameters
    ----------
    epsilon : float or None
        The bound of the strong ones; None: there are none.
    budget : Budget
        Steps of each gradient attack, queries of an attack that queries the engine, and which images it attacks.
    scores : bool
        True if the engine returns its logits, which Square then queries.
    """
    counted = (3,) if budget.name == "quick" else (3, 7)
    runs = [AttackRun("replay", BIM._replace(counted=(0, *counted))), AttackRun("twin", BIM._replace(counted=counted))]
    if epsilon is not None:
        names: tuple[SpecName, ...] = ("PGD", "CosPGD")
        strong = [AttackSpec(name, epsilon, alpha=epsilon / 4, start="random", counted=(budget.steps,)) for name in names]
        runs += [AttackRun(source, spec) for source in ("replay", "twin") for spec in strong]
        runs.append(AttackRun("noise", _asked("noise", epsilon, 3)))
        runs.append(AttackRun("engine", _asked("DLA", epsilon, budget.queries), budget.query_stride))
        if scores:
            runs.append(AttackRun("engine", _asked("Square", epsilon, budget.queries), budget.query_stride))
    return tuple(runs)


def corrupted_runs(worst: Sequence[CorruptionName]) -> tuple[CorruptedRun, ...]:
    """List the corruptions: the worst common ones, and those of cameras and codecs; none where there are no worst ones."""
    if not worst:
        return ()
    return (
        *(CorruptedRun("corrupted", name, CORRUPTED_SEVERITY) for name in worst),
        *(CorruptedRun("codec", name, severity) for name, severity in CODEC),
    )


def _asked(name: SpecName, epsilon: float, queries: int) -> AttackSpec:
    return AttackSpec(name, epsilon, alpha=0.0, start="clean", counted=(queries,), eight_bit=True)


def fill_units(
    units: Units,
    targets: Targets,
    runs: Sequence[Run],
    *,
    batch: int,
    first: int,
    victims: AttackBatch,
    classes: int,
    advance: Callable[[int], None],
    rank: int = 0,
    ranks: int = 1,
) -> None:
    """
    Score one batch, by its number, under the runs that are this process's and are not finished yet.

    `first` is the place of its first image among all. `advance` is called with images times forwards.
    """
    count = len(victims.images)
    for place, run in enumerate(runs):
        if (batch + place) % ranks != rank:  # shifted: each process has some of every part
            continue
        if not units.has(batch, place):
            began = time.monotonic()
            chosen = np.arange(first, first + count) % run.stride == 0
            counts = _score(targets, run, _some(victims, chosen), classes) if chosen.any() else _nothing(run, classes)
            units.put(batch, place, counts, time.monotonic() - began)
        advance(round(count * run.forwards))


def read_units(units: Units, runs: Sequence[Run], sizes: Sequence[int], classes: int) -> tuple[PoolResult, ...]:
    """Put the finished units of all batches, of so many images each, together: one result for each case of each run."""
    images = sum(sizes)
    results: list[PoolResult] = []
    for place, run in enumerate(runs):
        attacked = np.arange(images) % run.stride == 0
        whole = np.concatenate([units.get(batch, place)[0] for batch in range(len(sizes))], axis=1)  # (C, I', 2K+F, 3)
        for (label, epsilon), values in zip(run.cases, whole, strict=True):
            reference, engine = values[:, :classes], values[:, classes : 2 * classes]
            numbers = values[:, 2 * classes :].reshape(len(values), -1)
            if not attacked.all():
                base = next(j for j in results if j.source == "replay" and j.epsilon == epsilon)
                reference, engine = (
                    _placed(attacked, new, old) for new, old in ((reference, base.reference), (engine, base.engine))
                )
            results.append(
                PoolResult(
                    source=run.source,
                    label=label,
                    epsilon=epsilon,
                    reference=reference,
                    engine=engine,
                    disagreement=Disagreement.from_array(numbers),
                    attacked=attacked,
                )
            )
    return tuple(results)


def _placed(where: npt.NDArray[np.bool_], new: Counts, old: Counts) -> Counts:
    whole = old.copy()
    whole[where] = new
    return whole


def _some(victims: AttackBatch, chosen: npt.NDArray[np.bool_]) -> AttackBatch:
    kept = torch.from_numpy(chosen)
    full = victims.full_labels
    return victims._replace(
        images=victims.images[kept],
        labels=victims.labels[kept],
        seeds=victims.seeds[kept],
        full_labels=None if full is None else tuple(full[index] for index in np.flatnonzero(chosen)),
    )


def _nothing(run: Run, classes: int) -> Counts:
    return np.zeros((len(run.cases), 0, 2 * classes + _DISAGREEMENT, 3), np.int64)


def _score(targets: Targets, run: Run, victims: AttackBatch, classes: int) -> Counts:
    """Counts of the reference, of the engine, and in the last rows those of `Disagreement`: (C, N, 2 K + F, 3)."""
    cases = []
    for received in run.received(targets, victims, classes):
        engine = torch.from_numpy(engine_labels(targets.engine, received))
        twin = predict(targets.twin, received)
        with torch.no_grad():
            logits = targets.reference(received.float() / 255)
            cut = logits if targets.tiled is None else targets.tiled(received.float() / 255)
        rows = [np.stack(count_victims(victims, labels, classes)) for labels in (logits.argmax(1), engine)]
        numbers = count_disagreement(victims.labels, cut, engine, twin).to_array()
        padded = np.pad(numbers, ((0, 0), (0, 3 * _DISAGREEMENT - numbers.shape[1]))).reshape(len(numbers), _DISAGREEMENT, 3)
        cases.append(np.concatenate([*rows, padded], axis=1))
    return np.stack(cases)


def engine_labels(engine: Engine, received: Tensor) -> npt.NDArray[np.uint8]:
    """Label (N, 3, H, W) uint8 images with an engine."""
    return engine.infer(to_pixels(received)).labels


def _scores(targets: Targets, images: Tensor) -> Tensor:
    """The engine's own logits of the image in 8 bits, at its full size."""
    logits = targets.engine.infer(to_pixels(nearest_8_bit(images))).logits
    assert logits is not None  # else nobody asks for them
    return targets.reference.enlarge(torch.from_numpy(logits), (images.shape[2], images.shape[3]))


def _as_logits(engine: Engine, images: Tensor, classes: int) -> Tensor:
    """Return one-hot logits: 1 at the engine's label of the 8-bit image, for attacks that see labels alone."""
    labels = torch.from_numpy(engine_labels(engine, nearest_8_bit(images))).long()
    return torch.nn.functional.one_hot(labels, classes).permute(0, 3, 1, 2).float()
