"""The parts that all result files share: checkpoint, bundle, data, environment and scores."""

from collections.abc import Sequence
from typing import Any, Literal, Self

import numpy as np
from pydantic import Field, field_validator

from ddcat.metrics import Counts, iou, miou, pixel_accuracy
from ddcat.preprocess import FileRule
from ddcat.schema import Fraction, Method, StrictModel, current_method
from ddcat_bench.errors import BenchError

__all__ = ["BundleEntry", "CheckpointEntry", "DataEntry", "Environment", "Scores", "check_same_images"]


class Environment(StrictModel):
    """The machine and the libraries of a measurement."""

    machine: dict[str, str | int]
    versions: dict[str, str]
    git_commit: str | None = Field(description="Commit of ddcat; '+changes' follows for an unclean tree.")
    device: str = Field(description="Device that PyTorch computed on: cpu, or the name of a GPU.")
    threads: int = Field(ge=1, description="Threads of PyTorch on the CPU.")
    seconds: float = Field(ge=0, description="Seconds that the whole measurement took.")
    date: str | None = Field(None, description="Day on which it ended, in UTC; null: not recorded.")


class CheckpointEntry(StrictModel):
    """The checkpoint that was evaluated, or that a bundle was made from."""

    path: str
    sha256: str
    step: int | None = Field(description="Updates of its training; null: imported, and not known.")
    method: Method
    architecture: str
    attack: dict[str, Any] | None = Field(description="Attack of its training; null: there was none.")
    seed: int | None = Field(None, description="Seed of its training; null: imported, or evaluated before it was recorded.")
    training: dict[str, Any] | None = Field(
        None, description="Configuration, but for the seed and what changes no weight; null as for the seed."
    )

    @field_validator("training", mode="before")
    @classmethod
    def _renamed(cls, training: Any) -> Any:
        """Name the method as `method` does, or results of one training would be told apart by their age."""
        if isinstance(training, dict) and isinstance(method := training.get("method"), dict):
            return training | {"method": method | {"name": current_method(method.get("name"))}}
        return training


class BundleEntry(StrictModel):
    """The bundle that was evaluated."""

    path: str
    name: str
    sha256: str = Field(description="SHA-256 of its manifest.")
    engine: dict[str, str | int | bool] = Field(description="The engine's description of itself.")


class DataEntry(StrictModel):
    """The images that were evaluated."""

    name: str
    split: str
    list_sha256: str = Field(description="SHA-256 of the names of all images of the split, one a line.")
    split_images: int = Field(ge=1, description="Images in the split.")
    long_side: int | None = Field(description="Images were resized to it first; null: they were not.")
    rule: FileRule | None = Field(None, description="How files were read; null: as stored, and resized to that side, if any.")
    scored_at: Literal["network", "file"] = Field(
        "network", description="Masks are compared with labels at the size that the network sees, or at the files' own."
    )
    usual_split: bool = Field(description="True where it is the validation split that the checkpoint or bundle names.")
    classes: tuple[str, ...]
    names: tuple[str, ...] = Field(description="Names of the evaluated images, in the order of all counts.")
    clips: str | None = Field(None, description="Expression for the video clip of a name; null: the data set does not say.")

    @property
    def summary(self) -> str:
        """Name in an error: camvid val, 20 of 101 images at a long side of 480."""
        chosen = "all" if len(self.names) == self.split_images else f"{len(self.names)} of"
        return f"{self.name} {self.split}, {chosen} {self.split_images} images{self.resized}"

    @property
    def resized(self) -> str:
        """What became of the images first, to follow their number: at a long side of 480, scored at the size of the files."""
        resize = None if self.rule is None else self.rule.resize
        to = self.long_side if resize is None else resize.to
        if to is None:
            return ""
        size = f"a long side of {to}" if isinstance(to, int) else f"{to[0]}x{to[1]} (height x width)"
        return f" at {size}{', scored at the size of the files' if self.scored_at == 'file' else ''}"


class Scores(StrictModel):
    """Figures over all evaluated images, and the counts of each image that they are computed from."""

    miou: Fraction = Field(description="Counts are summed over the images first; classes without a pixel are left out.")
    pixel_accuracy: Fraction
    mean_image_miou: Fraction = Field(description="Mean over the images of each image's own mIoU.")
    foreground_miou: Fraction | None = Field(
        default=None, description="mIoU without the background class; null: there is none."
    )
    class_iou: tuple[Fraction | None, ...]
    counts: tuple[tuple[tuple[int, int, int], ...], ...] = Field(
        description="(images, classes, 3): true positives, false positives, false negatives."
    )

    @classmethod
    def of(cls, counts: Counts, background: int | None = None) -> Self:
        """
        Compute all figures from counts (I, K, 3) int64; foreground mIoU leaves out the class `background`.

        Raises BenchError if no pixel was counted at all.
        """
        total = counts.sum(0)
        if not total.any():
            raise BenchError("every pixel of the evaluated images is ignored, and none can be scored: use images with labels")
        foreground = np.nan if background is None else miou(np.delete(total, background, axis=0))
        images = [value for image in counts if not np.isnan(value := miou(image))]
        return cls(
            miou=miou(total),
            pixel_accuracy=pixel_accuracy(total),
            mean_image_miou=float(np.mean(images)),
            foreground_miou=None if np.isnan(foreground) else foreground,
            class_iou=tuple(None if np.isnan(value) else float(value) for value in iou(total)),
            counts=tuple(tuple((tp, fp, fn) for tp, fp, fn in image) for image in counts.tolist()),
        )

    def array(self) -> Counts:
        """Return the counts as (I, K, 3) int64."""
        return np.array(self.counts, dtype=np.int64)


def check_same_images(results: Sequence[tuple[str, DataEntry]]) -> None:
    """
    Refuse results, by their names, that do not compare.

    Raises BenchError, which names the first two that were not evaluated on the same images.
    """
    for name, other in results[1:]:
        first_name, first = results[0]
        if (first.list_sha256, first.resized, first.names) != (other.list_sha256, other.resized, other.names):
            raise BenchError(
                f"{first_name} and {name} were not evaluated on the same images ({first.summary}; {other.summary}): use "
                "results on one set of images"
            )
