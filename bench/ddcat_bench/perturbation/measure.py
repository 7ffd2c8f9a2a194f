"""Make what the plans say, let a model and an engine label it, and count; what is finished is not done again."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate, pairwise

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ddcat.classes import IGNORE_INDEX
from ddcat.metrics import Counts, confusion_counts
from ddcat_bench.errors import BenchError
from ddcat_bench.perturbation.making import Changed, Victims, learn, make, smallest_side
from ddcat_bench.perturbation.plans import Plan
from ddcat_bench.perturbation.results import BANDS, BandRow, MakerName, Norms, PerturbationRow
from ddcat_bench.result_schema import Scores
from ddcat_bench.work_units import Units
from ddcat_train.attacks import Model
from ddcat_train.data import Dataset
from ddcat_train.data.loader import evaluation_plan, read_whole
from ddcat_train.distributed.ranks import ALONE, Ranks
from ddcat_train.seeds import derive_seed

__all__ = ["Judge", "PerturbationJob", "measure_perturbations", "patch_distance"]

Judge = Callable[[Tensor], npt.NDArray[np.integer]]  # images (N, 3, H, W) uint8 -> labels (N, H, W)

_LEARNT_FROM = 2  # images at once, of which something is learnt: more of them would be fewer steps


@dataclass(frozen=True)
class PerturbationJob:
    """What is made on which models, and who labels it."""

    dataset: Dataset
    plans: tuple[Plan, ...]
    # "model" and, for an engine, "twin": images (N, 3, H, W) in [0, 1] to logits
    makers: Mapping[MakerName, Model] = field(default_factory=dict)
    judges: tuple[Judge, ...] = ()  # the model and, if there is one, the engine: images (N, 3, H, W) uint8 to labels (N, H, W)
    max_images: int | None = None  # most images of the whole evaluation, spread evenly over the split
    most: int | None = None  # most of those that are changed, spread evenly over them
    batch_size: int = 8
    seed: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))  # where the makers compute

    @cached_property
    def listed(self) -> list[int]:
        """Places in the data set of all images of the evaluation, in the order of its result."""
        plan = evaluation_plan(self.dataset, batch_size=self.batch_size, limit=self.max_images)
        return [index for batch in plan for index in batch]

    @cached_property
    def places(self) -> list[int]:
        """Places in that list of the images that are changed."""
        images = len(self.listed)
        count = images if self.most is None else min(self.most, images)
        return [(2 * step + 1) * images // (2 * count) for step in range(count)]

    @cached_property
    def indices(self) -> list[int]:
        """Places in the data set of the images that are changed, in the order of all counts."""
        return [self.listed[place] for place in self.places]

    def batches(self, indices: Sequence[int], size: int) -> Iterator[list[int]]:
        """Yield images in batches of one size of image."""
        waiting: list[int] = []
        for index in indices:
            if waiting and (len(waiting) == size or self.dataset.size(waiting[0]) != self.dataset.size(index)):
                yield waiting
                waiting = []
            waiting.append(index)
        if waiting:
            yield waiting

    @property
    def forwards(self) -> int:
        """Approximate number of forwards in all, for the progress bar."""
        return sum(plan.forwards_of_all(len(self.indices)) for plan in self.plans)

    @cached_property
    def sides(self) -> dict[float, int]:
        """The side of a patch of each share, in pixels."""
        shares = {plan.bound for plan in self.plans if plan.threat == "patch"}
        sizes = {self.dataset.size(index) for index in self.indices} if shares else set()
        return {share: smallest_side(sizes, share) for share in shares}

    def check(self) -> None:
        """
        Refuse what cannot be made, before any work.

        Raises BenchError where there are no other images to judge on what is learnt. Raises AttackError where a patch does not
        fit into an image.
        """
        if any(plan.epochs for plan in self.plans) and len(self.indices) < 2:
            raise BenchError(
                "a universal perturbation and a patch are learnt on half of the images and tested on the other half, and there "
                "is one image: use 2 or more, or another suite"
            )
        _ = self.sides


def measure_perturbations(
    job: PerturbationJob, units: Units, *, ranks: Ranks = ALONE, advance: Callable[[int], None] = lambda forwards: None
) -> tuple[PerturbationRow, ...]:
    """
    Do what is not done yet of this process's share, wait for the others, and put all together: the same in each process.

    Its units are kept in folders of their own among those of the whole evaluation. `advance` is called with about the number of
    forwards just made, in all `PerturbationJob.forwards` over all processes.
    """
    if not job.plans:
        ranks.gather(None)  # all have done their share of the rest
        return ()
    counted, learnt = Units(units.folder / "perturbations"), Units(units.folder / "learnt")
    images = len(job.indices)
    for place, plan in enumerate(job.plans):
        for half in (0, 1) if plan.epochs else ():
            if (place + half) % ranks.size != ranks.rank:
                continue
            if not learnt.has(half, place):
                began = time.monotonic()
                learnt.put(half, place, _learn(job, plan, half).numpy(), time.monotonic() - began)
            advance(plan.epochs * len(plan.learnt_on(images, half)))
    ranks.gather(None)  # all is learnt that others will need
    ends = list(accumulate((len(batch) for batch in job.batches(job.indices, job.batch_size)), initial=0))
    for number, (first, last) in enumerate(pairwise(ends)):
        for place, plan in enumerate(job.plans):
            if (number + place) % ranks.size != ranks.rank:  # shifted: each process has some of every plan
                continue
            chosen = [one for one in range(first, last) if one % plan.stride == 0]
            if not counted.has(number, place):
                began = time.monotonic()
                found = _count(job, plan, place, chosen, learnt)
                counted.put(number, place, found, time.monotonic() - began)
            advance(plan.forwards * len(chosen))
    ranks.gather(None)  # all have done their share
    return tuple(_rows(job, counted, len(ends) - 1))


def _learn(job: PerturbationJob, plan: Plan, half: int) -> Tensor:
    assert plan.made_on is not None
    chosen = [job.indices[place] for place in plan.learnt_on(len(job.indices), half)]

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        yield from (_read(job, batch) for batch in job.batches(chosen, _LEARNT_FROM))

    return learn(
        plan, job.makers[plan.made_on], batches, size=job.dataset.size(job.indices[0]), side=job.sides.get(plan.bound, 0),
        seed=derive_seed(job.seed, half),
    )  # fmt: skip


def _read(job: PerturbationJob, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
    _, images, labels = read_whole(job.dataset, indices)
    return images.to(job.device, memory_format=torch.channels_last), labels.to(job.device)


def _count(job: PerturbationJob, plan: Plan, place: int, chosen: Sequence[int], learnt: Units) -> npt.NDArray[np.float64]:
    """
    Count the labels of some images in all cases of a plan.

    Returns (C, J, N, B, K + 1, 3) float64: of each case, judge, image, band of distances and class; in the last row of classes
    the two norms and 0.
    """
    bands = len(BANDS) if plan.threat == "patch" else 1
    classes = len(job.dataset.classes)
    counts = np.zeros((len(plan.cases), len(job.judges), len(chosen), bands, classes + 1, 3))
    middle = len(job.indices) // 2
    for half in (0, 1) if plan.epochs else (None,):
        # what is learnt on one half is judged on the other
        own = [at for at, one in enumerate(chosen) if half is None or (one >= middle) == (half == 0)]
        if not own:
            continue
        images, labels = _read(job, [job.indices[chosen[at]] for at in own])
        seeds = torch.tensor([derive_seed(job.seed, job.indices[chosen[at]]) for at in own])
        made = make(
            plan, None if plan.made_on is None else job.makers[plan.made_on], Victims(images, labels, seeds),
            None if half is None else torch.from_numpy(learnt.get(half, place)[0]),
            size=job.dataset.size(job.indices[0]), side=job.sides.get(plan.bound, 0),
        )  # fmt: skip
        for case, changed in enumerate(made):
            counts[case][:, own] = _judged(job, changed, labels.cpu().numpy(), bands, job.sides.get(plan.bound, 1))
    return counts


def _judged(
    job: PerturbationJob, changed: Changed, truth: npt.NDArray[np.int64], bands: int, side: int
) -> npt.NDArray[np.float64]:
    """Count what each judge says of changed images: (J, N, B, K + 1, 3)."""
    classes = len(job.dataset.classes)
    counts = np.zeros((len(job.judges), len(truth), bands, classes + 1, 3))
    if changed.norms is not None:
        counts[:, :, 0, classes, :2] = changed.norms.numpy()
    for judge, label in enumerate(job.judges):
        for image, labels in enumerate(label(changed.images)):
            if changed.outside is None:
                counts[judge, image, 0, :classes] = confusion_counts(truth[image], labels, classes)
                continue
            distance = patch_distance(changed.outside[image].cpu().numpy()) / side
            for band, (low, high) in enumerate(zip(BANDS, [*BANDS[1:], np.inf], strict=True)):
                counted = np.where((distance > low) & (distance <= high), truth[image], IGNORE_INDEX)
                counts[judge, image, band, :classes] = confusion_counts(counted, labels, classes)
    return counts


def patch_distance(outside: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """
    Return how far each pixel is from a square patch: rows or columns, whichever is more; 0 under it.

    `outside` (H, W) bool are the pixels that the patch does not cover.
    """
    apart = []
    for axis in (1, 0):
        covered = np.flatnonzero(~outside.all(axis))
        places = np.arange(outside.shape[1 - axis])
        apart.append(np.maximum(np.maximum(covered[0] - places, places - covered[-1]), 0))
    distance: npt.NDArray[np.int64] = np.maximum(apart[0][:, None], apart[1][None, :])
    return distance


def _rows(job: PerturbationJob, counted: Units, batches: int) -> Iterator[PerturbationRow]:
    images, classes = len(job.indices), len(job.dataset.classes)
    background = job.dataset.classes.background
    for place, plan in enumerate(job.plans):
        whole = np.concatenate([counted.get(number, place)[0] for number in range(batches)], axis=2)
        for case, of_case in zip(plan.cases, whole, strict=True):
            counts: Counts = of_case[..., :classes, :].astype(np.int64)  # (J, N, B, K, 3)
            scores = [Scores.of(of_judge.sum(1), background) for of_judge in counts]
            yield PerturbationRow(
                threat=plan.threat,
                attack=case.attack,
                control=case.control,
                made_on=plan.made_on,
                bound=plan.bound,
                learnt_on=len(plan.learnt_on(images, 0)) if plan.epochs else 0,
                places=tuple(job.places[one] for one in plan.chosen(images)),
                scores=scores[0],
                engine=scores[1] if len(scores) > 1 else None,
                bands=tuple(_bands(counts)) if plan.threat == "patch" else (),
                norms=_norms(of_case[0, :, 0, classes, :2]) if plan.threat == "minimal norm" and not case.control else None,
            )


def _bands(counts: Counts) -> Iterator[BandRow]:
    for band, nearest in enumerate(BANDS):
        right = [tuple(one[:, band, :, 0].sum(1).tolist()) for one in counts]
        # every labelled pixel is a true positive or a false negative of its class
        pixels = tuple(counts[0, :, band][:, :, [0, 2]].sum((1, 2)).tolist())
        yield BandRow(nearest=nearest, pixels=pixels, right=right[0], engine_right=right[1] if len(right) > 1 else None)


def _norms(values: npt.NDArray[np.float64]) -> Norms:
    l2, linf = ([None if np.isnan(one) else float(one) for one in of_norm] for of_norm in values.T)
    return Norms(l2=tuple(l2), linf=tuple(linf))
