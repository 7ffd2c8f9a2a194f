"""From an fp32 graph and its checkpoint to int8: calibrated, and, where a limit is set, judged and corrected until it holds."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ddcat.engines.base import LoadedGraph
from ddcat.engines.onnxruntime import OrtGraph
from ddcat.manifest import AccuracyDrop, CalibrationKind, Quantisation
from ddcat_export.calibration import attack_sample, calibration_images, measure_ranges, read_samples, training_attack
from ddcat_export.float_fallback import Evaluator, Trial, fall_back
from ddcat_export.progress import Progress, with_progress
from ddcat_export.quantise import layers_of, quantise
from ddcat_export.sensitivity import LayerError, measure_sensitivity
from ddcat_train.checkpoints import Checkpoint
from ddcat_train.networks import Segmenter

__all__ = ["REPORT", "Quantised", "make_int8"]

REPORT = "sensitivity.json"
_SENSITIVITY_IMAGES = 2  # images, clean and attacked, on which each layer is measured


class Quantised(NamedTuple):
    """
    int8 graphs and what is known of them.

    Attributes
    ----------
    signed, unsigned : bytes
        The graph for all runtimes, and its form for runtimes of a CPU.
    quantisation : Quantisation
    report : bytes or None
        For the bundle's `REPORT`, JSON; None where no limit was set.
    layers : tuple of LayerError
        The worst first; empty where no limit was set.
    """

    signed: bytes
    unsigned: bytes
    quantisation: Quantisation
    report: bytes | None
    layers: tuple[LayerError, ...]


def make_int8(
    checkpoint: Checkpoint,
    segmenter: Segmenter,
    graph: bytes,
    *,
    engine: str,
    kind: CalibrationKind,
    images: int,
    max_drop: float | None,
    data_root: Path | None = None,
    size: tuple[int, int] | None = None,
    progress: Progress = lambda stage: None,
) -> Quantised:
    """
    Quantise the graph of a checkpoint.

    Parameters
    ----------
    checkpoint : Checkpoint
    segmenter : Segmenter
        Its network, on the CPU, in eval().
    graph : bytes
        The typed fp32 graph of it.
    engine : str
        The runtime that the bundle is for; one of a CPU judges the form that it serves.
    kind : "clean" or "mixed"
        Of the images to calibrate on: see `calibration_images`.
    images : int
        Of the training split to calibrate on; and of the validation split to judge on, where a limit is set.
    max_drop : float, optional
        Points of clean and of adversarial mIoU that int8 may lose against the fp32 graph: layers are left in float until both
        forms hold it. Adversarial images are made on the PyTorch model, and shown to the graphs.
    data_root : Path, optional
        Where the data set lies now; where it lay in training by default.
    size : (height, width), optional
        The only one that the graph takes.
    progress : callable, optional
        Is told what is being done.

    Raises
    ------
    ExportError
        Where the data is not there, or the limit cannot be held.
    """
    segmenter.requires_grad_(requires_grad=False)  # attacks need gradients of images alone
    batches, calibration = calibration_images(
        checkpoint, segmenter, kind, images=images, data_root=data_root, size=size, progress=progress
    )
    ranges = measure_ranges(graph, batches, progress=progress)
    layers = layers_of(graph)
    float_layers: tuple[str, ...] = ()
    sensitivity: tuple[LayerError, ...] = ()
    drop: AccuracyDrop | None = None
    report: bytes | None = None
    if max_drop is not None:
        options = training_attack(checkpoint)
        looked_at = read_samples(checkpoint, "train", images=_SENSITIVITY_IMAGES, data_root=data_root, size=size)
        sensitivity = measure_sensitivity(
            graph,
            ranges,
            clean=[sample.image for sample in looked_at],
            adversarial=[attack_sample(segmenter, sample, options, seed) for seed, sample in enumerate(looked_at)],
            progress=progress,
        )
        samples = read_samples(checkpoint, "val", images=images, data_root=data_root, size=size)
        attacked = [
            attack_sample(segmenter, sample, options, seed)
            for seed, sample in with_progress(list(enumerate(samples)), "attacking images to judge on", progress)
        ]
        judge = Evaluator(samples, attacked, classes=segmenter.classes, attack=options, reference=graph, open_fp32=OrtGraph)

        def drop_of(floats: Sequence[str]) -> AccuracyDrop:
            progress(f"judging int8 with {len(floats)} layers in float")
            forms = [quantise(graph, ranges, float_layers=floats, unsigned=unsigned) for unsigned in (False, True)]
            return judge.drop([(forms[0], _open_signed), (forms[1], _open_openvino if engine == "openvino" else OrtGraph)])

        float_layers, drop, trials = fall_back([one.layer for one in sensitivity], drop_of, max_drop=max_drop)
        report = _report(sensitivity, trials)
    signed, unsigned = (quantise(graph, ranges, float_layers=float_layers, unsigned=unsigned) for unsigned in (False, True))
    return Quantised(
        signed,
        unsigned,
        Quantisation(
            calibration=calibration,
            float_layers=float_layers,
            quantised_layers=len(layers) - len(float_layers),
            max_drop=max_drop,
            drop=drop,
            report=None if report is None else REPORT,
        ),
        report,
        sensitivity,
    )


def _open_signed(content: bytes) -> LoadedGraph:
    # for TensorRT, which may not be here; ONNX Runtime computes it as well, but on x86 slower than fp32
    try:
        return _open_openvino(content)
    except ImportError:
        return OrtGraph(content)


def _open_openvino(content: bytes) -> LoadedGraph:
    from ddcat.engines.openvino import OpenVinoGraph  # noqa: PLC0415 -- an optional library

    return OpenVinoGraph(content, precision="int8")


def _report(layers: Sequence[LayerError], trials: Sequence[Trial]) -> bytes:
    found = {"layers": [layer._asdict() for layer in layers], "trials": [trial._asdict() for trial in trials]}
    return json.dumps(found, indent=1).encode() + b"\n"
