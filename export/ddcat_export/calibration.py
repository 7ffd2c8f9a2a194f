"""
Ranges of activations, measured on images that the network was trained on, clean or half of them attacked.

Adversarial images are made on the PyTorch model. They drive activations beyond the ranges of clean ones, where an engine that
was calibrated on clean images alone would cut them off.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from ddcat.classes import IGNORE_INDEX
from ddcat.hashing import sha256_of_bytes
from ddcat.manifest import Calibration, CalibrationKind
from ddcat_export.engines.onnxruntime_calibration import measure_magnitudes
from ddcat_export.errors import ExportError
from ddcat_export.progress import Progress, with_progress
from ddcat_export.quantise import normalise_matmuls, quantised_tensors
from ddcat_train.attacks import pgd, to_8_bit
from ddcat_train.checkpoints import Checkpoint
from ddcat_train.data import open_dataset
from ddcat_train.data.loader import evaluation_batches
from ddcat_train.errors import DataError
from ddcat_train.networks import Segmenter
from ddcat_train.pixels import nearest_8_bit, to_pixels, to_planes

__all__ = ["Images", "Sample", "attack_sample", "calibration_images", "measure_ranges", "read_samples", "training_attack"]

Images = npt.NDArray[np.uint8]

_PAPER = {"epsilon": 0.03, "alpha": 0.01, "steps": 3}  # of its training
_COMPUTE = ("Conv", "MatMul", "MaxPool", "Add", "Relu", "Clip")  # what reads or gives the tensors that are rounded


class Sample(NamedTuple):
    """An image of a split."""

    name: str
    image: Images  # (1, H, W, 3)
    labels: npt.NDArray[np.int64]  # (1, H, W), 255 = ignored


def training_attack(checkpoint: Checkpoint) -> dict[str, Any]:
    """Give PGD with the bound, step and number of steps of the checkpoint's training, or of the paper's where it had none."""
    return {"name": "PGD", **_PAPER, **(checkpoint.description.attack or {}), "start": "random"}


def read_samples(
    checkpoint: Checkpoint, split: str, *, images: int, data_root: Path | None = None, size: tuple[int, int] | None = None
) -> tuple[Sample, ...]:
    """
    Read images of the checkpoint's data set as its network is judged on them, spread evenly over a split.

    Parameters
    ----------
    checkpoint : Checkpoint
    split : str
        "train" or "val": the one that the checkpoint's training called so.
    images : int
        At most.
    data_root : Path, optional
        Where the data set lies now; where it lay in training by default.
    size : (height, width), optional
        Resize them to it: the only one that the graph takes.

    Raises
    ------
    ExportError
        Where the data is not there, cannot be read, or has labels that the network does not know.
    """
    data = checkpoint.description.config.data
    name = {"train": data.train_split, "val": data.val_split}[split]
    samples = []
    try:
        dataset = open_dataset(data.name, data_root or data.root, name, long_side=data.judged_long_side)
        for (label,), pixels, labels in evaluation_batches(dataset, batch_size=1, limit=images):
            sample = (pixels, labels) if size is None else _resized(pixels, labels, size)
            _check(labels, len(checkpoint.description.classes), f"{label} of {data.name}")
            samples.append(Sample(label, to_pixels(nearest_8_bit(sample[0])), sample[1].numpy()))
    except DataError as cause:
        raise ExportError(
            f"int8 is calibrated and judged on images of {data.name}: {cause}; --data-root DIR says where they lie, and "
            "--precision fp32 needs none"
        ) from cause
    return tuple(samples)


def attack_sample(segmenter: Segmenter, sample: Sample, options: dict[str, Any], seed: int) -> Images:
    """
    Attack an image on the PyTorch model, and round the perturbation toward zero to whole grey levels.

    Parameters
    ----------
    segmenter : Segmenter
        On the CPU, in eval().
    sample : Sample
    options : dict
        Of PGD: as `training_attack` gives them.
    seed : int
        Of the random start.

    Returns
    -------
    (1, H, W, 3) uint8
    """
    pixels = to_planes(sample.image)  # (1, 3, H, W)
    labels = torch.from_numpy(sample.labels)
    chosen = {key: value for key, value in options.items() if key != "name"}
    found = to_8_bit(pgd(segmenter, pixels, labels, seeds=torch.tensor([seed]), **chosen), pixels)
    return to_pixels(found)


def calibration_images(
    checkpoint: Checkpoint,
    segmenter: Segmenter,
    kind: CalibrationKind,
    *,
    images: int = 32,
    data_root: Path | None = None,
    size: tuple[int, int] | None = None,
    progress: Progress = lambda stage: None,
) -> tuple[tuple[Images, ...], Calibration]:
    """
    Give images of the training split to calibrate on, the same ones for the same arguments, and say what they are.

    Parameters
    ----------
    checkpoint : Checkpoint
    segmenter : Segmenter
        Its network, on the CPU, in eval().
    kind : "clean" or "mixed"
        Mixed: every second image is attacked.
    images : int
    data_root, size
        As for `read_samples`.
    progress : callable, optional
        Is told what is being done.

    Raises
    ------
    ExportError
        Where the data is not there: int8 cannot do without.
    """
    samples = read_samples(checkpoint, "train", images=images, data_root=data_root, size=size)
    options = training_attack(checkpoint) if kind == "mixed" else None
    found = tuple(
        attack_sample(segmenter, sample, options, seed) if options is not None and seed % 2 else sample.image
        for seed, sample in with_progress(list(enumerate(samples)), f"taking {kind} images to calibrate on", progress)
    )
    return found, Calibration(
        kind=kind,
        images=len(found),
        split=checkpoint.description.config.data.train_split,
        list_sha256=sha256_of_bytes("\n".join(sample.name for sample in samples).encode()),
        attack=options,
    )


def measure_ranges(graph: bytes, images: Sequence[Images], *, progress: Progress = lambda stage: None) -> dict[str, float]:
    """
    Measure the largest magnitude of every activation that may be rounded.

    Parameters
    ----------
    graph : bytes
        A typed fp32 graph of `build_graph`.
    images : sequence of (N, H, W, 3) uint8
    progress : callable, optional
        Is told what is being done.

    Returns
    -------
    dict of str to float
        By tensor, for `ddcat_export.quantise.quantise`.
    """
    found = measure_magnitudes(
        normalise_matmuls(graph), _COMPUTE, with_progress(images, "measuring ranges on images", progress)
    )
    return {name: found[name] for name in quantised_tensors(graph)}


def _check(labels: Tensor, classes: int, where: str) -> None:
    highest = max((int(label) for label in torch.unique(labels) if label != IGNORE_INDEX), default=0)
    if highest >= classes:
        raise ExportError(f"{where} has label {highest}, and the network knows 0 to {classes - 1}: use its own data")


def _resized(pixels: Tensor, labels: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    return (
        F.interpolate(pixels, size, mode="bilinear", antialias=True),  # (1, 3, H, W)
        F.interpolate(labels[None].float(), size, mode="nearest")[0].long(),  # (1, H, W)
    )
