"""What a folder of results holds of its job and of each image, as files."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from ddcat.classes import IGNORE_INDEX, Classes
from ddcat.schema import Count, Details, Sha256, StrictModel, Text

if TYPE_CHECKING:
    from ddcat.engines.answer_statistics import Statistics

__all__ = ["JOB", "RECORDS", "Answer", "Distributions", "Job", "Record"]

JOB, RECORDS = "job.json", "records"  # file and folder by which a folder of results is known


class Answer(NamedTuple):
    """
    An image and its mask.

    Attributes
    ----------
    name : str
        Of the image: its path within the folder that was given.
    stem : str
        The name without its suffix.
    labels : (H, W) uint8
        In 0..K-1, or 255 where the engine abstains; at the size of the image.
    pixels : (H, W, C) uint8
        The image, in RGB or bands.
    classes : Classes
    """

    name: str
    stem: str
    labels: npt.NDArray[np.uint8]
    pixels: npt.NDArray[np.uint8]
    classes: Classes

    def present(self) -> list[int]:
        """Return the labels of the classes that the mask has."""
        return [label for label in np.unique(self.labels).tolist() if label != IGNORE_INDEX]


class Job(StrictModel):
    """What decides the bytes of results: runs that agree in it share a folder."""

    schema_version: Literal[2] = 2
    bundle: Sha256
    formats: tuple[str, ...]
    batch: Count
    engine: Details
    abstain: bool = False

    @staticmethod
    def settings_of(description: Mapping[str, str | int | bool]) -> dict[str, str | int | bool]:
        """Return what decides the answers of an engine: its description, but for the number of streams."""
        return {name: value for name, value in description.items() if name != "streams"}


class Distributions(StrictModel):
    """Statistics of an answer: see `ddcat.engines.answer_statistics.Statistics`."""

    classes: tuple[Count, ...]
    boundaries: tuple[Count, ...]
    density: float
    confidence: tuple[Count, ...] | None
    mean_confidence: float

    @classmethod
    def of(cls, statistics: "Statistics") -> "Distributions":
        """Return what a record holds of statistics."""
        values = {
            name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in statistics._asdict().items()
        }
        return cls.model_validate({name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})

    def statistics(self) -> "Statistics":
        """Return them as arrays."""
        from ddcat.engines.answer_statistics import Statistics  # noqa: PLC0415 -- needs safetensors, and what is wrong is said first

        values: dict[str, Any] = {name: np.array(value) if isinstance(value, tuple) else value for name, value in self}
        return Statistics(**values)


class Record(StrictModel):
    """What is known of an image that is done."""

    name: Text
    stamp: Text  # of the file that was read: see `ddcat.predict.sources.Source`
    height: Count
    width: Count
    pixels: tuple[Count, ...]  # of each class, in the mask
    statistics: Distributions  # of the engine's answer
    parts: dict[str, Any]  # of the files that hold all images, by format
