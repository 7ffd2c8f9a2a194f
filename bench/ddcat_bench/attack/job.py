"""The job of `ddcat attack`: model, data, attacks and options."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from ddcat import provenance
from ddcat_bench.attack.sliding_window import sized, windows
from ddcat_bench.attack.suites import AttackSpec, attack_specs
from ddcat_bench.cli_options import ProtocolName, SuiteName
from ddcat_bench.describe import versions
from ddcat_bench.errors import BenchError
from ddcat_bench.perturbation.plans import Plan, suite_plans
from ddcat_train.checkpoints import Checkpoint, load_checkpoint
from ddcat_train.data import Dataset, open_dataset
from ddcat_train.data.survey import survey
from ddcat_train.errors import DataError
from ddcat_train.reference import Reference

__all__ = ["AttackJob", "ClassPixels", "count_class_pixels", "open_surrogates"]

_PROBED_IMAGES = 6
_NO_CROP = (0, 0)  # of a model whose training is not known: the protocol of windows is refused for it


class ClassPixels(NamedTuple):
    """Number of training pixels of each class, (K,) int64, by which SEA-MCE-Bal balances the classes, and of which images."""

    counts: npt.NDArray[np.int64]
    source: str


def count_class_pixels(reference: Reference, dataset: Dataset) -> ClassPixels:
    """
    Count the labels of the split that a model was trained on, as they are in the files.

    If that split of the evaluated data set is missing, labels are counted on the evaluated split, as `source` records.
    """
    name = reference.data.train_split
    try:
        return _count(open_dataset(dataset.name, dataset.root, name))
    except DataError as missing:
        pixels = _count(dataset)
        return pixels._replace(source=f"{pixels.source}, for the {name} split cannot be read: {missing}")


def _count(dataset: Dataset) -> ClassPixels:
    found = survey(dataset)
    faults = f", {found.faulty} of which have faults" if found.faulty else ""
    source = f"the labels of the {len(dataset)} images of the {dataset.split} split{faults}"
    return ClassPixels(found.pixels[: len(dataset.classes)], source)


@dataclass(frozen=True)
class AttackJob:
    """A model, the images and the attacks on it."""

    reference: Reference
    dataset: Dataset  # with the model's classes. The protocol of windows resizes images itself: for it they have their own size
    suite: SuiteName = "quick"  # a key of `ddcat_bench.attack.suites.SUITES`
    epsilons: tuple[float, ...] | None = None  # bounds in place of the suite's own
    iterations: int | None = None  # number of steps of SEA, in place of 300
    l2: tuple[float, ...] | None = None  # L2 norms, and shares of the image under a patch, in place of those of the suite full
    patches: tuple[float, ...] | None = None
    surrogates: tuple[Checkpoint, ...] = ()  # checkpoints of the same data set that BIM, n = 1..7, is transferred from
    # seed of random starts and black-box attacks; an image's own seed follows from it and from its place in the split
    seed: int = 0
    protocol: ProtocolName = "whole"
    batch_size: int = 8  # most images at once
    max_images: int | None = None  # most images to attack, spread evenly over the split
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @cached_property
    def specs(self) -> tuple[AttackSpec, ...]:
        """The passes of the suite."""
        return attack_specs(self.suite, epsilons=self.epsilons, iterations=self.iterations, surrogates=len(self.surrogates))

    @property
    def plans(self) -> tuple[Plan, ...]:
        """The perturbations of the suite full, which are of whole images."""
        return suite_plans(l2=self.l2, shares=self.patches) if (self.suite, self.protocol) == ("full", "whole") else ()

    @cached_property
    def class_pixels(self) -> ClassPixels | None:
        """Training pixels of each class, for SEA-MCE-Bal; None without SEA."""
        if not any(spec.name == "SEA" for spec in self.specs):
            return None
        return count_class_pixels(self.reference, self.dataset)

    @property
    def crop(self) -> tuple[int, int]:
        """Height and width of a window: those of the crops in training."""
        return self.reference.crop or _NO_CROP

    @property
    def base(self) -> int | None:
        """The longer side that images are resized to by the protocol of windows; None: they are as they are."""
        return self.reference.data.rule.long_side if self.protocol == "windows" else None

    @property
    def at_base(self) -> bool:
        """True if the protocol of windows counts at that size, not at the labels' own."""
        return self.dataset.name == "cityscapes"

    def windows_per_image(self, height: int, width: int) -> int:
        """Return the number of windows of an image."""
        if self.protocol == "whole":
            return 1
        height, width = sized((height, width), self.base)
        return len(windows(max(height, self.crop[0]), max(width, self.crop[1]), self.crop))

    @property
    def images(self) -> int:
        """Number of images."""
        return len(self.dataset) if self.max_images is None else min(self.max_images, len(self.dataset))

    @property
    def probed(self) -> int:
        """Number of images of the probe for masked gradients."""
        return min(_PROBED_IMAGES, self.images)

    @property
    def forwards(self) -> int:
        """
        Approximate number of forwards in all, without the probe, if all images are as large as the first.

        It is for the progress.
        """
        passes = 1 if self.protocol == "whole" else self.windows_per_image(*self.dataset.size(0))
        return self.images * passes * sum(spec.forwards for spec in self.specs)

    def identity(self) -> dict[str, Any]:
        """Return everything that the counts depend on, as JSON."""
        return {
            "checkpoint": self.reference.sha256(),
            "data": self.dataset.list_sha256(),
            "long_side": self.dataset.long_side,
            "images": self.images,
            "batch": self.batch_size,
            "plans": json.loads(json.dumps(self.specs)),
            "perturbations": json.loads(json.dumps(self.plans)),
            "surrogates": [surrogate.sha256() for surrogate in self.surrogates],
            "class_pixels": None if self.class_pixels is None else self.class_pixels.counts.tolist(),
            "seed": self.seed,
            "protocol": self.protocol,
            "crop": list(self.crop),
            "base": self.base,
            "device": self.device.type,
            "versions": versions(),
            "code": provenance.git_commit(),
        }


def open_surrogates(target: Reference, paths: Sequence[Path]) -> tuple[Checkpoint, ...]:
    """
    Load the checkpoints whose attacks are transferred.

    Raises BenchError if one was trained on other classes, or is named twice.
    """
    opened: dict[str, Checkpoint] = {}
    for path in paths:
        checkpoint = load_checkpoint(path)
        if (checkpoint.data.name, checkpoint.classes.names) != (target.data.name, target.classes.names):
            raise BenchError(
                f"--surrogate {path} was trained on {checkpoint.data.name} ({len(checkpoint.classes)} classes), {target.path} "
                f"on {target.data.name} ({len(target.classes)}): use one of the same data set and classes"
            )
        if (digest := checkpoint.sha256()) in opened:
            raise BenchError(f"--surrogate {path} is named twice: name it once")
        opened[digest] = checkpoint
    return tuple(opened.values())
