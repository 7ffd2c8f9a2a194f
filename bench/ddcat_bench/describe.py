"""The provenance of a result: its checkpoint, bundle, data and machine, as its file records them."""

from datetime import UTC, datetime
from typing import Any

import torch

from ddcat import provenance
from ddcat.bundle import Bundle
from ddcat.engines import Engine
from ddcat_bench.result_schema import BundleEntry, CheckpointEntry, DataEntry, Environment
from ddcat_train.checkpoints import Checkpoint, Description
from ddcat_train.data import Dataset

__all__ = ["describe_bundle", "describe_checkpoint", "describe_data", "describe_environment", "versions"]

_NO_WEIGHT: Any = {  # what of a configuration changes no weight; the seed does, and is apart
    "seed": True,
    "data": {"root", "val_split", "val_long_side"},
    "train": {"workers", "evaluate_every", "evaluate_images", "evaluate_batch"},
}
_LIBRARIES = ("torch", "numpy", "opencv-python-headless", "onnx", "onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt")


def describe_checkpoint(checkpoint: Checkpoint) -> CheckpointEntry:
    """Describe a checkpoint and its training."""
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
    """Describe a bundle and its engine."""
    return BundleEntry(path=str(bundle.path), name=bundle.manifest.name, sha256=bundle.digest, engine=dict(engine.description))


def describe_data(dataset: Dataset, names: list[str], *, usual_list: str | None) -> DataEntry:
    """
    Write which images were evaluated.

    Parameters
    ----------
    dataset : Dataset
    names : list of str
        Names of the evaluated images.
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
    """Return the versions of all libraries that compute; a result is of one set of versions."""
    return provenance.versions(_LIBRARIES)


def describe_environment(device: torch.device, seconds: float) -> Environment:
    """Describe the machine and the libraries of a measurement."""
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
    """Return the configuration that runs share which differ in their seed or their machine alone."""
    config = description.config.model_dump(mode="json", exclude=_NO_WEIGHT)
    if description.attack is None:
        del config["attack"]  # it is of the evaluation alone
    if (weights := description.config.model.pretrained) is not None:
        config["model"]["pretrained"] = weights.name
    return config
