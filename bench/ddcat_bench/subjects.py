"""What is judged: a checkpoint's main branch, a split of its data, and where the result comes from."""

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from ddcat import provenance
from ddcat.agent import under_agent
from ddcat.bundle import Bundle
from ddcat.cli_support import DEVICES, parse_choice
from ddcat.engines import Engine
from ddcat.engines.checks import check_size, format_sizes
from ddcat.engines.errors import InputError
from ddcat.manifest import InputShapes
from ddcat_bench.arguments import check_source
from ddcat_bench.entries import BundleEntry, CheckpointEntry, DataEntry, Environment
from ddcat_bench.errors import BenchError
from ddcat_train.checkpoints import Checkpoint, Description, load_checkpoint
from ddcat_train.data import Dataset, open_dataset
from ddcat_train.errors import DataError
from ddcat_train.networks import Segmenter
from ddcat_train.ranks import check_device

__all__ = [
    "check_sizes",
    "checkpoint_of",
    "describe_bundle",
    "describe_checkpoint",
    "describe_data",
    "describe_environment",
    "judged_at_once",
    "main_branch",
    "open_bundle_data",
    "open_split",
    "torch_device",
    "versions",
]

_NO_WEIGHT: Any = {  # what of a configuration changes no weight; the seed does, and is apart
    "seed": True,
    "data": {"root", "val_split", "val_long_side"},
    "train": {"workers", "evaluate_every", "evaluate_images", "evaluate_batch"},
}
_MOST = 8  # images at once
_LIBRARIES = ("torch", "numpy", "opencv-python-headless", "onnx", "onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt")


def main_branch(checkpoint: Checkpoint, device: torch.device) -> Segmenter:
    """Build the network for judging: in eval(), no gradient of a parameter, channels last."""
    network = checkpoint.segmenter().requires_grad_(False)
    return network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def torch_device(name: str) -> torch.device:
    """
    Choose where PyTorch computes: of several processes each on a GPU of its own.

    Parameters
    ----------
    name : "auto", "cpu" or "cuda"

    Raises
    ------
    DdcatError
    """
    parse_choice("--device", name, DEVICES)
    check_device(name, 1)
    if not torch.cuda.is_available() or name == "cpu":
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ["LOCAL_RANK"]) if under_agent() else 0)


def open_split(checkpoint: Checkpoint, *, data_root: Path | None = None, split: str | None = None) -> Dataset:
    """
    Open the data that a checkpoint is judged on, as it was during its training: same reader, same size.

    Parameters
    ----------
    checkpoint : Checkpoint
    data_root : Path, optional
        Where the data set lies now; where it lay in training by default.
    split : str, optional
        The validation split of the checkpoint by default.

    Raises
    ------
    BenchError
        Where its classes are others, or the validation split has another list of images.
    DataError
    """
    description = checkpoint.description
    config = description.config.data
    name = split or config.val_split
    dataset = _open(config.name, data_root, config.root, name, long_side=config.judged_long_side, known_to=str(checkpoint.path))
    _check_classes(dataset, description.classes.names, checkpoint.path)
    if name == config.val_split and description.val is not None:
        _check_list(dataset, description.val.list_sha256, description.val.images, checkpoint.path)
    return dataset


def open_bundle_data(bundle: Bundle, *, data_root: Path | None = None, split: str | None = None) -> Dataset:
    """
    Open the data that an engine is judged on: the split that its manifest names, at its resolution.

    Parameters
    ----------
    bundle : Bundle
    data_root : Path, optional
        Where the data set lies now; where the manifest says by default.
    split : str, optional
        Another split than the manifest's.

    Raises
    ------
    BenchError
        Where its classes are others, or the manifest's split has another list of images.
    DataError
    """
    manifest = bundle.manifest
    data = manifest.data
    name = split or data.split
    dataset = _open(data.name, data_root, Path(data.root), name, long_side=data.long_side, known_to=str(bundle.path))
    _check_classes(dataset, manifest.class_table().names, bundle.path)
    if name == data.split and data.list_sha256 is not None:
        _check_list(dataset, data.list_sha256, data.images, bundle.path)
    return dataset


def _open(name: str, moved_to: Path | None, root: Path, split: str, *, long_side: int | None, known_to: str) -> Dataset:
    """Open a data set where it is said to lie now, or where it lay; one that is not there any more has moved."""
    if moved_to is None and not root.is_dir():
        seen_from = "" if root.is_absolute() else f", seen from {Path.cwd()}"
        raise BenchError(
            f"the data set of {known_to} is not at {root}{seen_from}: use --data-root FOLDER to say where it is now"
        )
    try:
        return open_dataset(name, moved_to or root, split, long_side=long_side)
    except DataError as cause:
        if moved_to is not None:
            raise
        raise DataError(f"{cause}; if the data set has moved, use --data-root FOLDER") from cause


def judged_at_once(bundle: Bundle) -> int:
    """How many images an engine is judged on at once: eight, if it takes as many."""
    batch = bundle.manifest.shapes.batch
    return max(batch.minimum, min(_MOST, batch.maximum or _MOST))


def checkpoint_of(bundle: Bundle, path: Path | None = None) -> Checkpoint:
    """
    Load the very checkpoint that a bundle was made from.

    Parameters
    ----------
    bundle : Bundle
    path : Path, optional
        Where it lies now; where it lay when it was exported by default.

    Raises
    ------
    BenchError
        Where it is not there, or its SHA-256 is another.
    """
    source = bundle.manifest.source
    checkpoint = load_checkpoint(check_source(bundle, path))
    found = checkpoint.sha256()
    if found != source.sha256:
        raise BenchError(
            f"{checkpoint.path} is not the checkpoint that {bundle.path} was made from: SHA-256 {found[:12]}..., the manifest "
            f"says {source.sha256[:12]}...: use --checkpoint with the right one, or export again"
        )
    return checkpoint


def check_sizes(bundle: Bundle, dataset: Dataset) -> None:
    """
    Refuse an engine that does not take the images that it is to be judged on, before anything is computed.

    Raises
    ------
    BenchError
        Naming the first such image, and what to use.
    """
    shapes = bundle.manifest.shapes
    sizes = [dataset.size(index) for index in range(len(dataset))]
    wrong = [index for index, size in enumerate(sizes) if not _taken(size, shapes)]
    if wrong:
        height, width = sizes[wrong[0]]
        raise BenchError(
            f"{bundle.path} takes {format_sizes(shapes)}, and {len(wrong)} of the {len(dataset)} images of {dataset.name} "
            f"{dataset.split} are of other sizes, {dataset.pairs[wrong[0]].image} of {height}x{width} (height x width): export "
            "for their sizes, or without --size for all"
        )


def _taken(size: tuple[int, int], shapes: InputShapes) -> bool:
    try:
        check_size(shapes.batch.minimum, *size, shapes)
    except InputError:
        return False
    return True


def describe_checkpoint(checkpoint: Checkpoint) -> CheckpointEntry:
    """Say what a checkpoint is and how it was trained."""
    description = checkpoint.description
    ours = description.imported is None  # of another program's, the configuration is a guess but for the network
    return CheckpointEntry(
        path=str(checkpoint.path),
        sha256=checkpoint.sha256(),
        step=description.step,
        method=description.config.method.name,
        architecture=description.architecture,
        attack=description.attack,
        seed=description.config.seed if ours else None,
        training=_training(description) if ours else None,
    )


def describe_bundle(bundle: Bundle, engine: Engine) -> BundleEntry:
    """Say what a bundle is and how its engine runs."""
    return BundleEntry(path=str(bundle.path), name=bundle.manifest.name, sha256=bundle.digest, engine=dict(engine.description))


def describe_data(dataset: Dataset, names: list[str], *, usual_list: str | None) -> DataEntry:
    """
    Say which images were judged.

    Parameters
    ----------
    dataset : Dataset
    names : list of str
        Of the judged images.
    usual_list : str or None
        SHA-256 of the list that the checkpoint or bundle names; None where an imported one names none.
    """
    digest = dataset.list_sha256()
    return DataEntry(
        name=dataset.name,
        split=dataset.split,
        list_sha256=digest,
        split_images=len(dataset),
        long_side=dataset.long_side,
        usual_split=digest == usual_list,
        classes=dataset.classes.names,
        names=tuple(names),
        clips=dataset.clips,
    )


def versions() -> dict[str, str]:
    """Give the versions of all that computes; a result names them, and is not put together from those of several."""
    return provenance.versions(_LIBRARIES)


def describe_environment(device: torch.device, seconds: float) -> Environment:
    """Say where and with what it was measured."""
    return Environment(
        machine=provenance.machine(),
        versions=versions(),
        git_commit=provenance.git_commit(),
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        threads=torch.get_num_threads(),
        seconds=seconds,
        date=f"{datetime.now(UTC):%Y-%m-%d}",
    )


def _training(description: Description) -> dict[str, Any]:
    """What two runs that differ in nothing but their seed, or their machine, have in common."""
    config = description.config.model_dump(mode="json", exclude=_NO_WEIGHT)
    if description.attack is None:
        del config["attack"]  # it is of the evaluation alone
    if (weights := description.config.model.pretrained) is not None:
        config["model"]["pretrained"] = weights.name
    return config


def _check_classes(dataset: Dataset, names: tuple[str, ...], judged: Path) -> None:
    if dataset.classes.names != names:
        raise BenchError(
            f"the classes of {dataset.root} ({', '.join(dataset.classes.names)}) are not those of {judged} "
            f"({', '.join(names)}): use --data-root with the data set of its training"
        )


def _check_list(dataset: Dataset, list_sha256: str, images: int | None, judged: Path) -> None:
    if dataset.list_sha256() != list_sha256:
        raise BenchError(
            f"the {dataset.split} split at {dataset.root} ({len(dataset)} images) is not the one that {judged} names "
            f"({images} images): use --data-root with the right folder, or --split with another split"
        )
