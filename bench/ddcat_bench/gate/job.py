"""The job of a gate."""

import dataclasses
from typing import Any, NamedTuple

from ddcat import provenance
from ddcat.bundle import Bundle
from ddcat.classes import IGNORE_INDEX
from ddcat.tiles import Tiles
from ddcat_bench.attack.probe import FORWARDS
from ddcat_bench.describe import versions
from ddcat_bench.errors import BenchError
from ddcat_bench.gate.budget import Budget
from ddcat_bench.gate.pool import EPSILONS, WORST, attack_runs, corrupted_runs
from ddcat_bench.inputs import engine_batch_size
from ddcat_bench.perturbation.measure import PerturbationJob
from ddcat_bench.perturbation.plans import gate_plans
from ddcat_train.corruptions import COMMON
from ddcat_train.data import Dataset
from ddcat_train.data.loader import evaluation_batches
from ddcat_train.errors import AttackError
from ddcat_train.reference import Reference

__all__ = ["GateJob"]

_PROBED_IMAGES = 4
_PERTURBED_IMAGES = 40  # what only informs is measured on so many


class GateJob(NamedTuple):
    """A bundle, the model that it was made from, the images and the budget of a gate."""

    bundle: Bundle
    reference: Reference
    dataset: Dataset
    max_images: int | None = None
    budget: Budget = Budget()

    @property
    def images(self) -> int:
        """Number of images."""
        return len(self.dataset) if self.max_images is None else min(self.max_images, len(self.dataset))

    @property
    def forwards(self) -> int:
        """Approximate number of forwards in the pool, for the progress bar."""
        runs = attack_runs(None if self.budget.name == "quick" else EPSILONS[0], self.budget, scores=self.scores)
        forwards = sum(run.forwards for run in runs)
        if self.budget.name == "quick":
            return round(self.images * forwards)
        forwards += sum(run.forwards for run in corrupted_runs(tuple(COMMON)[: WORST * (self.dataset.rule.channels == 3)]))
        return FORWARDS * self.probed + round(self.images * forwards) + self.perturbations().forwards

    @property
    def probed(self) -> int:
        """Number of images of the probe for masked gradients, which the quick budget leaves out."""
        return min(_PROBED_IMAGES, self.images)

    def perturbations(self) -> PerturbationJob:
        """Return the perturbations that inform, without their models; the quick budget has none, nor has a single image."""
        few = self.budget.name == "quick" or self.images < 2
        whole = PerturbationJob(
            self.dataset,
            () if few else gate_plans(steps=self.budget.steps, stride=self.budget.query_stride),
            max_images=self.max_images,
            most=_PERTURBED_IMAGES,
            batch_size=engine_batch_size(self.bundle),
            seed=self.budget.seed,
        )
        try:
            whole.check()
        except AttackError:  # of a strip: what only informs must not end a gate
            return dataclasses.replace(whole, plans=tuple(plan for plan in whole.plans if plan.threat != "patch"))
        return whole

    @property
    def scores(self) -> bool:
        """True if the engine returns the logits of each image."""
        return self.tiles is None and any(entry.name == "logits" for entry in self.bundle.manifest.outputs)

    @property
    def tiles(self) -> Tiles | None:
        """The rule by which the bundle cuts images; None if none of the data set is larger than a tile."""
        rule = self.bundle.manifest.preprocessing
        is_cut = rule.tiles is not None and any(rule.cuts(*self.dataset.size(index)) for index in range(len(self.dataset)))
        return rule.tiles if is_cut else None

    @property
    def at_file_size(self) -> bool:
        """True if masks are scored at the size of the files: where the bundle resizes images, and a server their masks back."""
        return self.bundle.manifest.preprocessing.resize is not None

    def check_labels(self) -> None:
        """
        Make sure that there is something to score.

        Raises BenchError if every pixel of the evaluated images is ignored. Raises DataError.
        """
        batches = evaluation_batches(self.dataset, batch_size=1, limit=self.max_images)
        if not any((labels != IGNORE_INDEX).any() for _, _, labels in batches):  # most often the first image tells
            raise BenchError(
                f"every pixel of the {self.images} images of {self.dataset.root}, {self.dataset.split}, is ignored: there is "
                "nothing to score; use a split with labels"
            )

    def identity(self) -> dict[str, Any]:
        """Return everything that the counts depend on, as JSON."""
        return {
            "bundle": self.bundle.digest,
            "checkpoint": self.reference.sha256(),
            "data": self.dataset.list_sha256(),
            "images": self.images,
            "budget": list(self.budget),
            "versions": versions(),
            "code": provenance.git_commit(),
        }
