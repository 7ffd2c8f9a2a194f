"""
Calibration: the ranges of activations on images that the network was trained on, clean or half of them attacked.

Adversarial images are made on the PyTorch model. They drive activations beyond the ranges of clean ones, where an engine that
was calibrated on clean images alone would clip them.
"""

from collections.abc import Sequence
from typing import Any

import torch

from ddcat.choices import CalibrationKind
from ddcat.engines.base import Images
from ddcat.hashing import sha256_of_bytes
from ddcat.manifest_precision import Calibration
from ddcat_export.data import ExportData, Sample
from ddcat_export.engines.onnxruntime_calibration import measure_magnitudes
from ddcat_export.progress import Progress, with_progress
from ddcat_export.quantise import normalise_matmuls, quantised_tensors
from ddcat_train.attacks import cospgd, pgd
from ddcat_train.networks import Segmenter
from ddcat_train.pixels import to_8_bit, to_pixels, to_planes
from ddcat_train.reference import Reference

__all__ = ["attack_sample", "attack_samples", "calibration_images", "measure_ranges", "training_attack"]

_PAPER = {"epsilon": 0.03, "alpha": 0.01, "steps": 3}  # of its training
_ATTACKS = {"PGD": pgd, "CosPGD": cospgd}
_COMPUTE = ("Conv", "MatMul", "MaxPool", "Add", "Relu", "Clip")  # operators that read or write the tensors that are rounded


def training_attack(reference: Reference) -> dict[str, Any]:
    """Return PGD with the bound, step size and number of steps of the model's training; the paper's where there is none."""
    return {"name": "PGD", **_PAPER, **(reference.attack or {}), "start": "random"}


def attack_sample(segmenter: Segmenter, sample: Sample, options: dict[str, Any], seed: int) -> Images:
    """
    Attack an image on the PyTorch model, and round the perturbation toward zero to whole grey levels.

    Parameters
    ----------
    segmenter : Segmenter
        On the CPU, in eval().
    sample : Sample
    options : dict
        Name and options of the attack: PGD, as `training_attack` returns it, or CosPGD.
    seed : int
        Seed of the random start.

    Returns
    -------
    (1, H, W, 3) uint8
    """
    pixels = to_planes(sample.image)  # (1, 3, H, W)
    labels = torch.from_numpy(sample.labels).long()
    chosen = {key: value for key, value in options.items() if key != "name"}
    attacked = _ATTACKS[options["name"]](segmenter, pixels, labels, seeds=torch.tensor([seed]), **chosen)
    return to_pixels(to_8_bit(attacked, pixels))


def attack_samples(
    segmenter: Segmenter, samples: Sequence[Sample], options: dict[str, Any], progress: Progress = lambda stage: None
) -> list[Images]:
    """Attack each sample, the first with seed 0: see `attack_sample`."""
    numbered = with_progress(list(enumerate(samples)), "attacking images to evaluate on", progress)
    return [attack_sample(segmenter, sample, options, seed) for seed, sample in numbered]


def calibration_images(
    data: ExportData,
    segmenter: Segmenter,
    kind: CalibrationKind,
    *,
    attack: dict[str, Any],
    images: int = 32,
    progress: Progress = lambda stage: None,
) -> tuple[tuple[Images, ...], Calibration]:
    """
    Return images of the training split to calibrate on, the same ones for the same arguments, and their description.

    Parameters
    ----------
    data : ExportData
    segmenter : Segmenter
        On the CPU, in eval().
    kind : "clean" or "mixed"
        Mixed: every second image is attacked.
    attack : dict
        Options of PGD, as `training_attack` returns them.
    images : int
    progress : callable, optional
        Called with the current stage.

    Raises
    ------
    ExportError
        Where the data is missing.
    """
    samples = data.train(images)
    pictures = tuple(
        attack_sample(segmenter, sample, attack, seed) if kind == "mixed" and seed % 2 else sample.image
        for seed, sample in with_progress(list(enumerate(samples)), f"taking {kind} images to calibrate on", progress)
    )
    return pictures, Calibration(
        kind=kind,
        images=len(pictures),
        split=data.train_split,
        list_sha256=sha256_of_bytes("\n".join(sample.name for sample in samples).encode()),
        attack=attack if kind == "mixed" else None,
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
        Called with the current stage.

    Returns
    -------
    dict of str to float
        By tensor, for `ddcat_export.quantise.quantise`.
    """
    batches = with_progress(images, "measuring ranges on images", progress)
    magnitudes = measure_magnitudes(normalise_matmuls(graph), _COMPUTE, batches)
    return {name: magnitudes[name] for name in quantised_tensors(graph)}
