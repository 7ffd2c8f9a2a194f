"""What `ddcat attack` is asked for."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from ddcat import provenance
from ddcat_bench.attack.class_pixels import ClassPixels, count_class_pixels
from ddcat_bench.attack.results import ProtocolName, SuiteName
from ddcat_bench.attack.suites import Plan, plans_of
from ddcat_bench.attack.windows import sized, windows
from ddcat_bench.errors import BenchError
from ddcat_bench.subjects import versions
from ddcat_train.checkpoints import Checkpoint, load_checkpoint
from ddcat_train.data import Dataset

__all__ = ["Evaluation", "open_substitutes"]

_PROBED_IMAGES = 6


@dataclass(frozen=True)
class Evaluation:
    """
    What is attacked, and how.

    Attributes
    ----------
    checkpoint : Checkpoint
    dataset : Dataset
        With the checkpoint's classes; for the protocol of windows with images of their own size, for it resizes them itself.
    suite : str
        A key of `ddcat_bench.attack.suites.SUITES`.
    epsilons : tuple of float or None
        Bounds in place of the suite's own.
    iterations : int or None
        Of SEA, in place of 300.
    substitutes : tuple of Checkpoint
        Of the same data set: BIM, n = 1..7, is made on each of them, too.
    seed : int
        Of random starts and black-box attacks; an image's own seed follows from it and from its place in the split.
    protocol : "whole" or "windows"
    batch_size : int
        Most images at once.
    limit : int or None
        Take that many images, spread evenly over the split.
    device : torch.device
    """

    checkpoint: Checkpoint
    dataset: Dataset
    suite: SuiteName = "quick"
    epsilons: tuple[float, ...] | None = None
    iterations: int | None = None
    substitutes: tuple[Checkpoint, ...] = ()
    seed: int = 0
    protocol: ProtocolName = "whole"
    batch_size: int = 8
    limit: int | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @cached_property
    def plans(self) -> tuple[Plan, ...]:
        """The passes of the suite."""
        return plans_of(self.suite, epsilons=self.epsilons, iterations=self.iterations, substitutes=len(self.substitutes))

    @cached_property
    def class_pixels(self) -> ClassPixels | None:
        """What SEA-MCE-Bal balances the classes by; None where there is no SEA."""
        if not any(plan.name == "SEA" for plan in self.plans):
            return None
        return count_class_pixels(self.checkpoint, self.dataset)

    @property
    def crop(self) -> tuple[int, int]:
        """Height and width of a window: those of the crops in training."""
        height, width = self.checkpoint.description.config.augment.crop
        return height, width

    @property
    def base(self) -> int | None:
        """The longer side that images are resized to by the protocol of windows; None: they are as they are."""
        return self.checkpoint.description.config.data.judged_long_side if self.protocol == "windows" else None

    @property
    def at_base(self) -> bool:
        """Whether the protocol of windows counts at that size, and not at the labels' own."""
        return self.dataset.name == "cityscapes"

    def passes(self, height: int, width: int) -> int:
        """How many windows an image is seen in."""
        if self.protocol == "whole":
            return 1
        height, width = sized((height, width), self.base)
        return len(windows(max(height, self.crop[0]), max(width, self.crop[1]), self.crop))

    @property
    def images(self) -> int:
        """How many are judged."""
        return len(self.dataset) if self.limit is None else min(self.limit, len(self.dataset))

    @property
    def probed(self) -> int:
        """On how many images masked gradients are looked for."""
        return min(_PROBED_IMAGES, self.images)

    @property
    def forwards(self) -> int:
        """
        How often about a network sees an image in all of it, the probe apart, if all are as large as the first.

        It is for the progress.
        """
        passes = 1 if self.protocol == "whole" else self.passes(*self.dataset.size(0))
        return self.images * passes * sum(plan.forwards for plan in self.plans)

    def identity(self) -> dict[str, Any]:
        """Give all that the counts depend on, as JSON."""
        return {
            "checkpoint": self.checkpoint.sha256(),
            "data": self.dataset.list_sha256(),
            "long_side": self.dataset.long_side,
            "images": self.images,
            "batch": self.batch_size,
            "plans": json.loads(json.dumps(self.plans)),
            "substitutes": [substitute.sha256() for substitute in self.substitutes],
            "class_pixels": None if self.class_pixels is None else self.class_pixels.counts.tolist(),
            "seed": self.seed,
            "protocol": self.protocol,
            "crop": list(self.crop),
            "base": self.base,
            "device": self.device.type,
            "versions": versions(),
            "code": provenance.git_commit(),
        }


def open_substitutes(judged: Checkpoint, paths: Sequence[Path]) -> tuple[Checkpoint, ...]:
    """
    Load the checkpoints whose attacks are transferred.

    Raises
    ------
    BenchError
        Where one was trained on other classes, or is named twice.
    """
    found: dict[str, Checkpoint] = {}
    for path in paths:
        checkpoint = load_checkpoint(path)
        theirs, ours = (one.description for one in (checkpoint, judged))
        if (theirs.config.data.name, theirs.classes.names) != (ours.config.data.name, ours.classes.names):
            raise BenchError(
                f"--substitute {path} was trained on {theirs.config.data.name} ({len(theirs.classes)} classes), {judged.path} "
                f"on {ours.config.data.name} ({len(ours.classes)}): use one of the same data set and classes"
            )
        if (digest := checkpoint.sha256()) in found:
            raise BenchError(f"--substitute {path} is named twice: name it once")
        found[digest] = checkpoint
    return tuple(found.values())
