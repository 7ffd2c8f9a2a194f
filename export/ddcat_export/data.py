"""The data set of a model as an export reads it: opened once, for calibration, evaluation and golden images."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from ddcat.classes import IGNORE_INDEX
from ddcat.engines.base import Images
from ddcat.manifest import DataSource
from ddcat.preprocess import apply_rule
from ddcat_export.errors import ExportError
from ddcat_train.data import open_dataset
from ddcat_train.data.dataset import Dataset
from ddcat_train.data.files import IMAGES, walk
from ddcat_train.data.loader import evaluation_batches
from ddcat_train.data.pictures import read_image
from ddcat_train.errors import DataError
from ddcat_train.networks import Segmenter
from ddcat_train.pixels import nearest_8_bit, to_pixels, to_planes
from ddcat_train.reference import Reference

__all__ = ["ExportData", "PictureFolder", "Sample", "spread"]


_LABELLED = "--temperature fit and --risk need labelled images"


class Sample(NamedTuple):
    """An image of a split."""

    name: str
    image: Images  # (1, H, W, 3)
    labels: npt.NDArray[np.uint8]  # (1, H, W), 255 = ignored
    full_labels: npt.NDArray[np.uint8] | None = None  # (H', W'), at the size of the file


class ExportData:
    """
    The training and validation splits of a model. Each is opened once, and each sample is read once.

    Parameters
    ----------
    reference : Reference
    root : Path, optional
        Folder of the data set. Default: the folder in training.
    size : (height, width), optional
        The only size that the graph takes; samples are resized to it.

    Attributes
    ----------
    source : DataSource
        Describes the validation split for a manifest.
    rule : FileRule
        How its images are read.
    """

    def __init__(self, reference: Reference, *, root: Path | None = None, size: tuple[int, int] | None = None) -> None:
        data = reference.data
        place = root or data.root
        self.source = DataSource(
            name=data.name,
            root="" if place is None else str(place),
            split=data.val_split,
            list_sha256=data.list_sha256,
            images=data.images,
        )
        self.rule, self.train_split = data.rule, data.train_split
        self._must_exist, self._size = root is not None, size
        self._classes = len(reference.classes)
        self._opened: dict[str, Dataset] = {}
        self._read: dict[tuple[str, int], tuple[Sample, ...]] = {}

    def train(self, images: int) -> tuple[Sample, ...]:
        """
        Read samples of the training split, spread evenly over it, at the size of evaluation.

        Parameters
        ----------
        images : int
            Their largest number.

        Raises
        ------
        ExportError
            Where the data is missing, cannot be read, or has labels that the network does not know.
        """
        return self._samples(self.train_split, images)

    def val(self, images: int) -> tuple[Sample, ...]:
        """Read samples of the validation split: see `train`."""
        return self._samples(self.source.split, images)

    def whole_val(self) -> Iterator[Sample]:
        """
        Read the whole validation split, an image at a time, as the bundle says; none is kept.

        Raises
        ------
        ExportError, DataError
        """
        dataset = self.val_dataset()
        for index in range(len(dataset)):
            sample = dataset.read(index)
            check_labels(torch.from_numpy(sample.labels), self._classes, f"{sample.name} of {self.source.name}")
            yield Sample(sample.name, sample.image[None], sample.labels[None], sample.full_labels)

    def val_dataset(self) -> Dataset:
        """Return the validation split, or say who needs it where it is missing."""
        try:
            return self._open(self.source.split)
        except DataError as cause:
            raise ExportError(f"{_LABELLED}: {cause}; use --data-root DIR") from cause

    def pictures(self, count: int) -> tuple[list[Images], str] | None:
        """
        Read images of the validation split, from the first to the last, at their own sizes.

        Returns
        -------
        images : list of (H, W, 3) uint8
        description : str
            Names the data set, its split and the images.

        None where the data set is not in the folder of the training, and no other folder was given.

        Raises
        ------
        DataError
        """
        if not self._must_exist and not (self.source.root and Path(self.source.root).is_dir()):
            return None
        dataset = self._open(self.source.split)
        samples = [dataset.read(spread(index, count, len(dataset))) for index in range(count)]
        names = ", ".join(sample.name for sample in samples)
        return [sample.image for sample in samples], f"{self.source.name}, {self.source.split}: {names}"

    def _samples(self, split: str, images: int) -> tuple[Sample, ...]:
        key = (split, images)
        if key not in self._read:
            try:
                self._read[key] = tuple(
                    self._sample(name, pixels, labels)
                    for (name,), pixels, labels in evaluation_batches(self._open(split), batch_size=1, limit=images)
                )
            except DataError as cause:
                raise ExportError(
                    f"int8 and --max-drop need images of {self.source.name}: {cause}; use --data-root DIR, or "
                    "--precision fp32, which needs no data"
                ) from cause
        return self._read[key]

    def _open(self, split: str) -> Dataset:
        if split not in self._opened:
            source = self.source
            self._opened[split] = open_dataset(source.name, Path(source.root), split, rule=self.rule)
        return self._opened[split]

    def _sample(self, name: str, pixels: Tensor, labels: Tensor) -> Sample:
        check_labels(labels, self._classes, f"{name} of {self.source.name}")
        if self._size is not None:
            pixels = F.interpolate(pixels, self._size, mode="bilinear", antialias=True)  # (1, 3, H, W)
            labels = F.interpolate(labels[None].float(), self._size, mode="nearest")[0]  # (1, H, W)
        return Sample(name, to_pixels(nearest_8_bit(pixels)), labels.to(torch.uint8).numpy())


class PictureFolder(ExportData):
    """
    Images without labels, in place of a data set: what the model itself says of them stands for their labels.

    Parameters
    ----------
    reference, size
        As for `ExportData`.
    folder : Path
        With its sub-folders.
    segmenter : Segmenter
        The model, on the CPU, in eval() mode.

    Raises
    ------
    ExportError
        Where the folder holds no image.
    """

    def __init__(
        self, reference: Reference, *, folder: Path, segmenter: Segmenter, size: tuple[int, int] | None = None
    ) -> None:
        super().__init__(reference, size=size)
        self.train_split = "images without labels"
        self._files = sorted(path for path in walk(folder) if path.suffix.lower() in IMAGES) if folder.is_dir() else []
        if not self._files:
            raise ExportError(f"--calibration-folder {folder}: expected a folder with images, {', '.join(IMAGES)}")
        self._folder, self._segmenter = folder, segmenter

    def val(self, images: int) -> tuple[Sample, ...]:
        """Refuse to evaluate: there are no labels."""
        raise ExportError("--max-drop is measured on labelled images: use --data-root instead of --calibration-folder")

    def val_dataset(self) -> Dataset:
        """Refuse to evaluate: there are no labels."""
        raise ExportError(f"{_LABELLED}: use --data-root instead of --calibration-folder")

    def pictures(self, count: int) -> tuple[list[Images], str]:
        """Read images, from the first to the last: see `ExportData.pictures`."""
        chosen = self._chosen(count)
        return [self._image(path) for path in chosen], f"{self._folder}: {', '.join(path.name for path in chosen)}"

    def _samples(self, split: str, images: int) -> tuple[Sample, ...]:
        key = (split, images)
        if key not in self._read:
            self._read[key] = tuple(self._labelled(path) for path in self._chosen(min(images, len(self._files))))
        return self._read[key]

    def _labelled(self, path: Path) -> Sample:
        pixels = to_planes(self._image(path)[None])
        if self._size is not None:
            pixels = F.interpolate(pixels, self._size, mode="bilinear", antialias=True)  # (1, 3, H, W)
        image = to_pixels(nearest_8_bit(pixels))
        with torch.no_grad():
            labels = self._segmenter(to_planes(image)).argmax(1)  # (1, H, W)
        return Sample(path.name, image, labels.to(torch.uint8).numpy())

    def _image(self, path: Path) -> Images:
        return apply_rule(read_image(path, self.rule), self.rule)

    def _chosen(self, count: int) -> list[Path]:
        return [self._files[spread(index, count, len(self._files))] for index in range(count)]


def check_labels(labels: Tensor, classes: int, where: str) -> None:
    """Refuse labels, 255 apart, that are not below the number of classes."""
    highest = max((int(label) for label in torch.unique(labels) if label != IGNORE_INDEX), default=0)
    if highest >= classes:
        raise ExportError(f"{where} has label {highest}, expected 0 to {classes - 1}: use the data set of the training")


def spread(index: int, count: int, total: int) -> int:
    """Return the place of one of `count` in `total`, evenly from the first to the last."""
    return index * (total - 1) // max(count - 1, 1)
