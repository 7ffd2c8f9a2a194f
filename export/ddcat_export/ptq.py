"""Post-training quantisation: an fp32 graph becomes int8 and, where a limit is set, is corrected until its mIoU holds it."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from ddcat.choices import CalibrationKind
from ddcat.engines.base import LoadedGraph
from ddcat.engines.onnxruntime import OrtGraph
from ddcat.manifest_precision import AccuracyDrop, Finetuning, Quantisation
from ddcat_export.calibration import attack_samples, calibration_images, measure_ranges
from ddcat_export.data import ExportData
from ddcat_export.float_fallback import Evaluator, Trial, fall_back
from ddcat_export.progress import Progress
from ddcat_export.quantise import layers_of, quantise
from ddcat_export.sensitivity import LayerError, measure_sensitivity
from ddcat_train.networks import Segmenter

__all__ = ["REPORT", "Finetune", "Quantised", "make_int8"]

Finetune = Callable[[bytes, Mapping[str, float]], tuple[bytes, Finetuning]]  # an fp32 graph and the ranges of its activations

REPORT = "sensitivity.json"
_SENSITIVITY_IMAGES = 2  # clean and attacked, on which each layer is measured


class Quantised(NamedTuple):
    """
    int8 graphs and their description.

    Attributes
    ----------
    signed, unsigned : bytes
        The graph for all runtimes, and its form for runtimes of a CPU.
    quantisation : Quantisation
    report : bytes or None
        JSON, for the bundle's `REPORT`; None where no limit was set.
    layers : tuple of LayerError
        The worst first; empty where no limit was set.
    """

    signed: bytes
    unsigned: bytes
    quantisation: Quantisation
    report: bytes | None
    layers: tuple[LayerError, ...]


def make_int8(
    data: ExportData,
    segmenter: Segmenter,
    graph: bytes,
    *,
    attack: dict[str, Any],
    engine: str,
    kind: CalibrationKind,
    images: int,
    max_drop: float | None,
    finetune: Finetune | None = None,
    progress: Progress = lambda stage: None,
) -> Quantised:
    """
    Quantise the graph of a network.

    Parameters
    ----------
    data : ExportData
    segmenter : Segmenter
        The network, on the CPU, in eval().
    graph : bytes
        Its typed fp32 graph.
    attack : dict
        Options of PGD: see `training_attack`. Adversarial images are made on the PyTorch model, and given to the graphs.
    engine : str
        The bundle's runtime; a runtime of a CPU evaluates the form that it will serve.
    kind : "clean" or "mixed"
        The images to calibrate on: see `calibration_images`.
    images : int
        Images of the training split to calibrate on and, where a limit is set, of the validation split to evaluate on.
    max_drop : float, optional
        Points of clean and of adversarial mIoU that int8 may lose against the fp32 graph. Layers are left in float until both
        forms hold the limit.
    finetune : callable, optional
        Trains the graph's weights for int8 with these ranges. The limit is on what is lost against the graph as it came.
    progress : callable, optional
        Called with the current stage.

    Raises
    ------
    ExportError
        Where the data is missing, or the limit cannot be held.
    """
    segmenter.requires_grad_(requires_grad=False)  # attacks need gradients of images alone
    batches, calibration = calibration_images(data, segmenter, kind, attack=attack, images=images, progress=progress)
    ranges = measure_ranges(graph, batches, progress=progress)
    exported, finetuning = graph, None
    if finetune is not None:
        graph, finetuning = finetune(graph, ranges)
    float_layers: tuple[str, ...] = ()
    sensitivity: tuple[LayerError, ...] = ()
    drop: AccuracyDrop | None = None
    report: bytes | None = None
    if max_drop is not None:
        samples = data.train(_SENSITIVITY_IMAGES)
        sensitivity = measure_sensitivity(
            graph,
            ranges,
            clean=[sample.image for sample in samples],
            adversarial=attack_samples(segmenter, samples, attack),
            progress=progress,
        )
        samples = data.val(images)
        adversarial = attack_samples(segmenter, samples, attack, progress)
        evaluator = Evaluator(samples, adversarial, classes=segmenter.classes, attack=attack, reference=exported)

        def drop_of(floats: Sequence[str]) -> AccuracyDrop:
            progress(f"evaluating int8 with {len(floats)} layers in float")
            forms = [quantise(graph, ranges, float_layers=floats, unsigned=unsigned) for unsigned in (False, True)]
            # the signed form is for TensorRT; OpenVINO, which is quicker with it, computes that of ASPP wrongly
            return evaluator.drop([(forms[0], OrtGraph), (forms[1], _open_openvino if engine == "openvino" else OrtGraph)])

        float_layers, drop, trials = fall_back([one.layer for one in sensitivity], drop_of, max_drop=max_drop)
        report = _report(sensitivity, trials)
    signed, unsigned = (quantise(graph, ranges, float_layers=float_layers, unsigned=unsigned) for unsigned in (False, True))
    return Quantised(
        signed,
        unsigned,
        Quantisation(
            calibration=calibration,
            float_layers=float_layers,
            quantised_layers=len(layers_of(graph)) - len(float_layers),
            max_drop=max_drop,
            drop=drop,
            report=None if report is None else REPORT,
            finetuning=finetuning,
        ),
        report,
        sensitivity,
    )


def _open_openvino(content: bytes) -> LoadedGraph:
    from ddcat.engines.openvino import OpenVinoGraph  # noqa: PLC0415 -- an optional library

    return OpenVinoGraph(content, precision="int8")


def _report(layers: Sequence[LayerError], trials: Sequence[Trial]) -> bytes:
    content = {"layers": [layer._asdict() for layer in layers], "trials": [trial._asdict() for trial in trials]}
    return json.dumps(content, indent=1).encode() + b"\n"
