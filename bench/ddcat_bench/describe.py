"""The provenance of a result: its model, bundle, data and machine, as its file records them."""

from datetime import UTC, datetime

import torch

from ddcat import provenance
from ddcat.bundle import Bundle
from ddcat.engines import Engine
from ddcat_bench.result_schema import BundleEntry, CheckpointEntry, DataEntry, Environment
from ddcat_train.data import Dataset
from ddcat_train.reference import Reference

__all__ = ["describe_bundle", "describe_data", "describe_environment", "describe_reference", "versions"]

_LIBRARIES = ("torch", "numpy", "opencv-python-headless", "onnx", "onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt")


def describe_reference(reference: Reference) -> CheckpointEntry:
    """Describe a model and its training."""
    return CheckpointEntry(
        path=str(reference.path),
        sha256=reference.sha256(),
        step=reference.step,
        method=reference.method,
        architecture=reference.architecture,
        attack=reference.attack,
        seed=reference.seed,
        training=reference.training,
    )


def describe_bundle(bundle: Bundle, engine: Engine) -> BundleEntry:
    """Describe a bundle and its engine."""
    return BundleEntry(path=str(bundle.path), name=bundle.manifest.name, sha256=bundle.digest, engine=dict(engine.description))


def describe_data(dataset: Dataset, names: list[str], *, usual_list: str | None) -> DataEntry:
    """
    Write which images were evaluated.

    `usual_list` is the SHA-256 of the list that the checkpoint or bundle names; None where an imported one names none.
    """
    digest = dataset.list_sha256()
    return DataEntry(
        name=dataset.name,
        split=dataset.split,
        list_sha256=digest,
        split_images=len(dataset),
        long_side=dataset.long_side,
        rule=dataset.rule,
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
