"""fp16 and bf16 with nodes in fp32: those of dangerous ranges, then the most sensitive ones until labels are equal enough."""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import onnx

from ddcat.choices import CalibrationKind, Precision
from ddcat.engines.base import LoadedGraph
from ddcat.engines.onnxruntime import OrtGraph
from ddcat.manifest_precision import AccuracyDrop, EqualLabels, KeptNode, MixedPrecision
from ddcat_export.calibration import attack_samples, calibration_images
from ddcat_export.dangerous_ranges import dangerous
from ddcat_export.data import ExportData
from ddcat_export.errors import ExportError
from ddcat_export.float_fallback import Evaluator, few
from ddcat_export.graph_checks import PRODUCTS
from ddcat_export.precision_cast import cast_graph, castable, rounds, simulated
from ddcat_export.progress import Progress
from ddcat_export.sensitivity import LayerError, measure_each
from ddcat_train.networks import Segmenter

__all__ = ["LEAST_EQUAL", "REPORT", "Mixed", "make_mixed"]

REPORT = "sensitivity.json"
LEAST_EQUAL = 0.9985  # the gate wants 99.8 % on its images
# As strong as the gate's. Of a defended network it changes up to three times as many labels as training's attack, and of an
# undefended one fewer, because it leads its pixels far beyond the boundaries of classes. So both are tried.
_STRONG = {"name": "CosPGD", "epsilon": 8 / 255, "alpha": 0.01, "steps": 20, "start": "random"}
_SENSITIVITY_IMAGES = 2  # clean and attacked, on which each node is measured


class Mixed(NamedTuple):
    """
    A graph with nodes in two types, and its description.

    Attributes
    ----------
    graph : bytes
    mixed : MixedPrecision
    report : bytes
        JSON, for the bundle's `REPORT`.
    nodes : tuple of LayerError
        The most sensitive first.
    """

    graph: bytes
    mixed: MixedPrecision
    report: bytes
    nodes: tuple[LayerError, ...]


class _Trial(NamedTuple):
    fp32_nodes: int
    drop: AccuracyDrop
    equal: EqualLabels

    @property
    def least(self) -> float:
        return min(self.equal.clean, self.equal.adversarial)

    def holds(self, max_drop: float) -> bool:
        return self.least >= LEAST_EQUAL and max(self.drop.clean, self.drop.adversarial) <= max_drop


def make_mixed(
    data: ExportData,
    segmenter: Segmenter,
    graph: bytes,
    precision: Precision,
    *,
    attack: dict[str, Any],
    engine: str,
    kind: CalibrationKind,
    images: int,
    max_drop: float,
    progress: Progress = lambda stage: None,
) -> Mixed:
    """
    Cast the graph of a network to fp16 or bf16, but for the nodes that would change labels.

    Parameters
    ----------
    data, segmenter, graph, attack, kind, images
        As for `ddcat_export.ptq.make_int8`.
    precision : "fp16" or "bf16"
    engine : str
        The bundle's runtime. OpenVINO judges by itself; for the others, which this machine may lack, ONNX Runtime computes in
        fp32 and rounds after each node.
    max_drop : float
        Points of clean and of adversarial mIoU that may be lost against the fp32 graph, under training's attack and under
        CosPGD of 20 steps at 8/255. Of the labels, `LEAST_EQUAL` must be the same, too.
    progress : callable, optional
        Called with the current stage.

    Raises
    ------
    ExportError
        Where the data is missing, or the limits do not hold with three quarters of the convolutions and products in fp32.
    """
    segmenter.requires_grad_(requires_grad=False)  # attacks need gradients of images alone
    batches, calibration = calibration_images(data, segmenter, kind, attack=attack, images=images, progress=progress)
    risky = dangerous(graph, precision, batches, progress=progress)
    names = [node.name for node in risky]
    nodes = {node.name: node for node in castable(onnx.load_model_from_string(graph)) if rounds(node)}
    free = [name for name in nodes if name not in names]
    samples = data.train(_SENSITIVITY_IMAGES)
    sensitivity = measure_each(
        graph,
        free,
        lambda node: simulated(cast_graph(graph, precision, fp32=[*names, *(other for other in free if other != node)])),
        clean=[sample.image for sample in samples],
        adversarial=attack_samples(segmenter, samples, attack),
        progress=progress,
    )
    worst_first = [one.layer for one in sensitivity]
    samples = data.val(images)
    evaluators = [
        Evaluator(
            samples, attack_samples(segmenter, samples, one, progress), classes=segmenter.classes, attack=one, reference=graph
        )
        for one in (attack, _STRONG)
    ]
    trials: dict[int, _Trial] = {}

    def holds(number: int) -> bool:
        progress(f"evaluating {precision} with {len(names) + number} nodes in fp32")
        content = cast_graph(graph, precision, fp32=[*names, *worst_first[:number]])
        opens = _open_openvino if engine == "openvino" else _open_simulated
        found = [_Trial(len(names) + number, *evaluator.compare(content, opens)) for evaluator in evaluators]
        trials[number] = min(found, key=lambda trial: trial.least)
        return all(trial.holds(max_drop) for trial in found)

    most = _most(nodes, names, worst_first)
    enough = None if most is None else few(most, holds)
    if enough is None:
        raise ExportError(_failure(precision, list(trials.values()), len(names), len(nodes), max_drop))
    kept = (*risky, *(KeptNode(name=name, reason="labels") for name in worst_first[:enough]))
    trial = trials[enough]
    mixed = MixedPrecision(
        kept=kept,
        typed_nodes=len(free) - enough,
        calibration=calibration,
        max_drop=max_drop,
        drop=trial.drop,
        least_equal=LEAST_EQUAL,
        equal_labels=trial.equal,
        report=REPORT,
    )
    content = cast_graph(graph, precision, fp32=[node.name for node in kept])
    return Mixed(content, mixed, _report(sensitivity, list(trials.values())), sensitivity)


def _most(nodes: dict[str, onnx.NodeProto], names: Sequence[str], worst_first: Sequence[str]) -> int | None:
    """How many may be kept, so that a quarter of the products are in the precision that was asked for; None: none."""
    products = {name for name, node in nodes.items() if node.op_type in PRODUCTS}
    left = 3 * len(products) // 4 - len(products.intersection(names))
    if left < 0:
        return None
    for number, name in enumerate(worst_first):
        left -= name in products
        if left < 0:
            return number
    return max(len(worst_first) - 1, 0)


def _failure(precision: Precision, trials: Sequence[_Trial], risky: int, nodes: int, max_drop: float) -> str:
    if not trials:
        return f"{risky} of {nodes} nodes have values that {precision} cannot hold: use --precision bf16 or fp32"
    best = max(trials, key=lambda trial: trial.least)
    return (
        f"with {best.fp32_nodes} of {nodes} nodes in fp32, {precision} gives {best.least:.2%} of the labels of fp32 and loses "
        f"{best.drop.clean:.2f} points of clean and {best.drop.adversarial:.2f} of adversarial mIoU; expected "
        f"{LEAST_EQUAL:.2%} and at most {max_drop:g} points: use --precision fp32 or int8"
    )


def _open_openvino(content: bytes) -> LoadedGraph:
    from ddcat.engines.openvino import OpenVinoGraph  # noqa: PLC0415 -- an optional library

    return OpenVinoGraph(content, precision="bf16")


def _open_simulated(content: bytes) -> LoadedGraph:
    return OrtGraph(simulated(content))


def _report(nodes: Sequence[LayerError], trials: Sequence[_Trial]) -> bytes:
    content = {
        "nodes": [{"node": one.layer, "clean": one.clean, "adversarial": one.adversarial} for one in nodes],
        "trials": [
            {
                "fp32_nodes": trial.fp32_nodes,
                "drop": {"clean": trial.drop.clean, "adversarial": trial.drop.adversarial},
                "equal_labels": trial.equal.model_dump(),
            }
            for trial in trials
        ],
    }
    return json.dumps(content, indent=1).encode() + b"\n"
