"""What exports, gates and attacks start from: a model with its classes and its data, whatever file it came in."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, NamedTuple

from ddcat.classes import Classes
from ddcat.manifest import Manifest
from ddcat.preprocess import AS_STORED, FileRule
from ddcat_train.networks import Segmenter

__all__ = ["Reference", "ReferenceData"]


class ReferenceData(NamedTuple):
    """
    The data set that a model is evaluated on.

    Attributes
    ----------
    name : str
        Its layout, a key of `ddcat_train.data.DATASETS`.
    root : Path or None
        Its folder; None: none is known.
    rule : FileRule
        How its images are read.
    images : int or None
        Number of images of the validation split; None: not known.
    list_sha256 : str or None
        SHA-256 of the names of those images, one a line; None: not known.
    """

    name: str
    root: Path | None
    train_split: str = "train"
    val_split: str = "val"
    rule: FileRule = AS_STORED
    images: int | None = None
    list_sha256: str | None = None

    @classmethod
    def of_manifest(cls, manifest: Manifest) -> "ReferenceData":
        """Return the data set that a bundle names; its training split is that of most data sets."""
        data = manifest.data
        root = Path(data.root) if data.root else None
        return cls(
            data.name, root, val_split=data.split, rule=manifest.evaluation_rule, images=data.images,
            list_sha256=data.list_sha256,
        )  # fmt: skip


class Reference(ABC):
    """
    A model that an engine is made of and compared with.

    Attributes
    ----------
    path : Path
        Its file.
    """

    path: Path

    @property
    @abstractmethod
    def classes(self) -> Classes:
        """Names and colours of its classes."""

    @property
    @abstractmethod
    def data(self) -> ReferenceData:
        """The data set that it is evaluated on."""

    @property
    @abstractmethod
    def method(self) -> str:
        """How it was trained."""

    @property
    @abstractmethod
    def architecture(self) -> str:
        """What it is made of."""

    @property
    def attack(self) -> dict[str, Any] | None:
        """The attack of its training, as keyword arguments; None where there was none, or none is known."""
        return None

    @property
    def epsilon(self) -> float:
        """Bound of the attacks that it is evaluated with, in [0, 1] units: the paper's where nobody says."""
        return 0.03

    @property
    def step(self) -> int | None:
        """Updates that it was trained for; None: not known."""
        return None

    @property
    def seed(self) -> int | None:
        """The seed of its training; None: not known."""
        return None

    @property
    def crop(self) -> tuple[int, int] | None:
        """Height and width of the images in its training; None: not known."""
        return None

    @property
    def training(self) -> dict[str, Any] | None:
        """What of its configuration changes weights, without the seed; None: not known."""
        return None

    @abstractmethod
    def sha256(self) -> str:
        """Return the hash of the file, in hexadecimal."""

    @abstractmethod
    def segmenter(self) -> Segmenter:
        """Build the network, on the CPU, in eval() mode. Raises `DdcatError`."""
