"""What the gate judges."""

from typing import Any, NamedTuple

from ddcat import provenance
from ddcat.bundle import Bundle
from ddcat.classes import IGNORE_INDEX
from ddcat_bench.attack.probe import FORWARDS
from ddcat_bench.errors import BenchError
from ddcat_bench.gate.budget import Budget
from ddcat_bench.gate.pool import EPSILONS, parts_of
from ddcat_bench.subjects import versions
from ddcat_train.checkpoints import Checkpoint
from ddcat_train.data import Dataset
from ddcat_train.data.loader import evaluation_batches

__all__ = ["Case"]

_PROBED_IMAGES = 4


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
        probe = 0 if self.budget.name == "quick" else FORWARDS * self.probed
        return probe + round(self.images * sum(part.forwards for part in parts))

    @property
    def probed(self) -> int:
        """On how many images masked gradients are looked for, unless the budget is the quick one."""
        return min(_PROBED_IMAGES, self.images)

    @property
    def scores(self) -> bool:
        """Whether the engine gives its logits."""
        return any(entry.name == "logits" for entry in self.bundle.manifest.outputs)

    def check_labels(self) -> None:
        """
        Make sure that there is something to score.

        Raises
        ------
        BenchError
            Where every pixel of the judged images is ignored.
        DataError
        """
        batches = evaluation_batches(self.dataset, batch_size=1, limit=self.limit)
        if not any((labels != IGNORE_INDEX).any() for _, _, labels in batches):  # most often the first image tells
            raise BenchError(
                f"every pixel of the {self.images} images of {self.dataset.root}, {self.dataset.split}, is ignored: there is "
                "nothing to score; use a split with labels"
            )

    def identity(self) -> dict[str, Any]:
        """All that the counts depend on, as JSON."""
        return {
            "bundle": self.bundle.digest,
            "checkpoint": self.checkpoint.sha256(),
            "data": self.dataset.list_sha256(),
            "images": self.images,
            "budget": list(self.budget),
            "versions": versions(),
            "code": provenance.git_commit(),
        }
