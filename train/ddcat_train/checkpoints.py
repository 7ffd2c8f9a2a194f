"""
Checkpoints: one safetensors file each, with its whole description in the header.

Its tensors are `model.*`, the weights to use, and, in the checkpoint that a run resumes from, `optimizer.*`,
`random.*` and, where `model.*` is an average, `training.*`, the weights that are averaged. Its header holds the description as
JSON; the same JSON is written beside it for people, and never read back.
"""

import struct
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from pydantic import BaseModel, ConfigDict, field_validator
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor

from ddcat.atomic_files import write_bytes, write_text
from ddcat.classes import Classes, repeated_name
from ddcat.hashing import sha256_of_bytes
from ddcat.json_text import parse_json, parse_model
from ddcat_train.checkpoint_files import BEST, LAST, find_checkpoint
from ddcat_train.config import Config
from ddcat_train.data.dataset import Dataset
from ddcat_train.errors import CheckpointError
from ddcat_train.methods import METHODS
from ddcat_train.networks import Segmenter, build_segmenter
from ddcat_train.networks.pretrained import state_dict_mismatches, summarise, unreadable_error
from ddcat_train.reference import Reference, ReferenceData

__all__ = [
    "BEST",
    "LAST",
    "Checkpoint",
    "Description",
    "Imported",
    "SplitEntry",
    "build_network",
    "find_checkpoint",
    "load_checkpoint",
    "read_description",
    "save_checkpoint",
]

_HEADER = "ddcat"  # the key of the description in the file's header
_MODEL = "model."
_NO_WEIGHT: Any = {  # what of a configuration changes no weight; the seed does, and is apart
    "seed": True,
    "data": {"root", "val_split", "val_long_side"},
    "train": {"workers", "evaluate_every", "evaluate_images", "evaluate_batch"},
}


class SplitEntry(BaseModel):
    """A split as it was read."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    images: int
    list_sha256: str
    meaning_sha256: str | None = None  # of the values and colours of its masks; None: not known

    @classmethod
    def of(cls, dataset: Dataset) -> Self:
        """Return the entry of a data set."""
        return cls(images=len(dataset), list_sha256=dataset.list_sha256(), meaning_sha256=dataset.meaning_sha256())


class Imported(BaseModel):
    """Origin of weights that were trained by another program."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: str  # its name
    sha256: str
    epoch: int | None  # as the file states it
    like: str  # the preset or configuration of the training: the file holds the network alone


class Description(BaseModel):
    """Description of a checkpoint. In that of an imported one, None stands for unknown."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: int = 1
    config: Config
    classes: Classes
    train: SplitEntry | None
    val: SplitEntry | None
    step: int | None  # updates done
    steps: int | None  # updates of the whole run
    class_weights: tuple[float, ...] | None = None  # of the losses
    scores: dict[str, float]  # of the latest evaluation, in [0, 1]
    best: float | None  # the highest selection score so far
    judged: bool = True  # False where an evaluation is due after that many updates and not done yet
    git_commit: str | None
    versions: dict[str, str]
    imported: Imported | None = None

    @field_validator("classes")
    @classmethod
    def _are_distinct(cls, value: Classes) -> Classes:
        if (name := repeated_name(value.names)) is not None:
            raise ValueError(f"two classes are named {name!r}")
        return value

    @property
    def architecture(self) -> str:
        """Backbone and context."""
        return self.config.model.architecture

    @property
    def attack(self) -> dict[str, Any] | None:
        """The attack of its training as keyword arguments; None where there was none."""
        return self.config.attack.model_dump() if METHODS[self.config.method.name].attacks else None


@dataclass(frozen=True)
class Checkpoint(Reference):
    """
    A checkpoint that was read.

    Attributes
    ----------
    path : Path
        Of the file.
    tensors : mapping of str to Tensor
        As stored, on the CPU.
    digest : str
        SHA-256 of the bytes that were read: a run may have replaced the file since.
    """

    path: Path
    description: Description
    tensors: Mapping[str, Tensor]
    digest: str

    @property
    def classes(self) -> Classes:
        """Names and colours of its classes."""
        return self.description.classes

    @property
    def data(self) -> ReferenceData:
        """The data set of its training."""
        data, val = self.description.config.data, self.description.val
        return ReferenceData(
            data.name, data.root, data.train_split, data.val_split, data.rule(evaluation=True),
            None if val is None else val.images, None if val is None else val.list_sha256,
        )  # fmt: skip

    @property
    def method(self) -> str:
        """The method of its training."""
        return self.description.config.method.name

    @property
    def architecture(self) -> str:
        """Backbone and context."""
        return self.description.architecture

    @property
    def attack(self) -> dict[str, Any] | None:
        """The attack of its training as keyword arguments; None where there was none."""
        return self.description.attack

    @property
    def epsilon(self) -> float:
        """Bound of the attack in its configuration."""
        return self.description.config.attack.epsilon

    @property
    def step(self) -> int | None:
        """Updates that it was trained for; None: imported, and not known."""
        return self.description.step

    @property
    def seed(self) -> int | None:
        """The seed of its training; None: imported, and not known."""
        return self.description.config.seed if self.description.imported is None else None

    @property
    def crop(self) -> tuple[int, int]:
        """Height and width of the crops in training."""
        height, width = self.description.config.augment.crop
        return height, width

    @property
    def training(self) -> dict[str, Any] | None:
        """The configuration that runs share which differ in their seed or their machine alone; None: imported."""
        description = self.description
        if description.imported is not None:  # of another program's, it is a guess but for the network
            return None
        config = description.config.model_dump(mode="json", exclude=_NO_WEIGHT)
        if description.attack is None:
            del config["attack"]  # it is of the evaluation alone
        if (weights := description.config.model.pretrained) is not None:
            config["model"]["pretrained"] = weights.name
        return config

    def sha256(self) -> str:
        """Return the hash of the file, in hexadecimal."""
        return self.digest

    def part(self, prefix: str) -> dict[str, Tensor]:
        """Return the tensors whose keys begin with a prefix, by their keys without it."""
        return {key.removeprefix(prefix): value for key, value in self.tensors.items() if key.startswith(prefix)}

    def segmenter(self) -> Segmenter:
        """
        Build the network in eval() mode and load its weights, strictly.

        Raises
        ------
        CheckpointError
            Naming the keys that do not fit.
        """
        config, classes = self.description.config, len(self.description.classes)
        if (
            config.model.hf is None and config.model.whole is None
        ):  # first without memory: a damaged description may ask for any amount
            with torch.device("meta"):
                network_weights = build_network(config, classes).state_dict()
            if faults := state_dict_mismatches(self.part(_MODEL), network_weights):
                raise CheckpointError(f"{self.path} does not fit its own description: {summarise(faults)}")
        network = build_network(config, classes)
        self.load_into(network)
        return network.eval()

    def load_into(self, network: Segmenter, part: str = _MODEL) -> None:
        """
        Load its weights into a network of its configuration, strictly, in the network's precision.

        Parameters
        ----------
        part : str
            Prefix of the weights.

        Raises
        ------
        CheckpointError
            Naming the keys that do not fit.
        """
        try:
            network.load_state_dict(self.part(part))
        except RuntimeError as cause:
            fault = " ".join(str(cause).split())
            raise CheckpointError(f"{self.path} does not fit its own description: {fault[:500]}") from cause

    def start(self, network: Segmenter, classes: Classes) -> list[str]:
        """
        Copy the weights to another network of this form, whatever their methods are.

        Parameters
        ----------
        network : Segmenter
            Branches that the checkpoint lacks keep their weights.
        classes : Classes
            Of the network.

        Returns
        -------
        list of str
            The branches that the checkpoint lacks.

        Raises
        ------
        CheckpointError
            Where the classes, or anything but the branches, differ from those of the network.
        """
        mine = self.description.classes.names
        if mine != classes.names:
            raise CheckpointError(
                f"{self.path} has the classes {', '.join(mine)[:200]}, and not {', '.join(classes.names)[:200]}: "
                "model.pretrained takes its backbone alone"
            )
        weights, network_weights = self.part(_MODEL), network.state_dict()
        absent = [name for name, head in network.heads.items() if head.state_dict() and not _any(weights, f"heads.{name}.")]
        kept = {
            key: value for key, value in network_weights.items() if key.startswith(tuple(f"heads.{name}." for name in absent))
        }
        surplus = {key for key in weights if key.startswith("heads.") and key.split(".")[1] not in network.heads}
        combined = {key: value for key, value in weights.items() if key not in surplus} | kept
        if faults := state_dict_mismatches(combined, network_weights):
            raise CheckpointError(
                f"{self.path} does not fit this network (model.* says which it is): {summarise(faults)}; "
                "model.pretrained takes its backbone alone"
            )
        network.load_state_dict(combined)
        return absent


def _any(keys: Iterable[str], prefix: str) -> bool:
    return any(key.startswith(prefix) for key in keys)


def build_network(config: Config, classes: int) -> Segmenter:
    """Build the network of a configuration, with random weights and all heads that its method trains."""
    heads = METHODS[config.method.name].heads(config.method)
    return build_segmenter(config.model, classes=classes, heads=heads)


def save_checkpoint(
    path: Path, description: Description, segmenter: Segmenter, extra: Mapping[str, Tensor] | None = None
) -> None:
    """
    Write a checkpoint, whole or not at all.

    Parameters
    ----------
    extra : mapping of str to Tensor, optional
        Further tensors that a run needs to resume; their keys have a prefix.
    """
    tensors = {f"{_MODEL}{key}": value for key, value in segmenter.state_dict().items()} | dict(extra or {})
    contiguous = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    write_bytes(path, save(contiguous, {_HEADER: description.model_dump_json()}))
    write_text(path.with_suffix(".json"), description.model_dump_json(indent=2) + "\n")


def load_checkpoint(source: Path) -> Checkpoint:
    """
    Read a checkpoint.

    Parameters
    ----------
    source : Path
        A checkpoint file, or a run directory: see `find_checkpoint`.

    Raises
    ------
    CheckpointError
        Where there is none, it is damaged, or ddcat did not write it.
    """
    path = find_checkpoint(source)
    with _reading(path):
        content = path.read_bytes()
        tensors = load(content)
        (length,) = struct.unpack_from("<Q", content)  # of the header, which `load` has checked
        metadata = parse_json(content[8 : 8 + length]).get("__metadata__", {})
    return Checkpoint(path, _describe(path, metadata), tensors, sha256_of_bytes(content))


def read_description(path: Path) -> Description:
    """Read the description of a checkpoint file, without its weights. Raises `CheckpointError`."""
    with _reading(path), safe_open(path, framework="pt") as file:
        metadata: dict[str, str] = file.metadata() or {}
    return _describe(path, metadata)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as cause:
        raise CheckpointError(f"no such checkpoint: {path}") from cause
    except (OSError, SafetensorError, ValueError) as cause:
        raise unreadable_error(path, f"is truncated or not a safetensors file ({cause})") from cause


def _describe(path: Path, metadata: Mapping[str, str]) -> Description:
    if _HEADER not in metadata:
        raise CheckpointError(f"{path} is a safetensors file, but not a checkpoint that ddcat train wrote")
    try:
        description = parse_model(Description, metadata[_HEADER])
    except ValueError as cause:
        raise CheckpointError(f"{path} is damaged, or of another version of ddcat: {str(cause)[:500]}") from cause
    if description.format != 1:
        raise CheckpointError(f"{path} has format {description.format}; this version of ddcat reads format 1")
    return description
