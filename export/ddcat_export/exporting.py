"""From a checkpoint to a bundle: export the main branch, prove it, cast or quantise it, and build the engine."""

import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from ddcat import provenance
from ddcat.atomic_files import check_can_create
from ddcat.bundle import Bundle
from ddcat.engines.golden import Replay
from ddcat.manifest import CalibrationKind, ClassEntry, Precision, Preprocessing, Sizes, SourceCheckpoint
from ddcat.signing import check_key
from ddcat_export.bundle_builder import CPU_GRAPH, GRAPH, ExportedModel, assemble, graph_precision, shapes_of_engine
from ddcat_export.calibration import training_attack
from ddcat_export.data import ExportData
from ddcat_export.engines import check_possible
from ddcat_export.errors import ExportError
from ddcat_export.golden_images import golden_images
from ddcat_export.graph_checks import OPSET
from ddcat_export.layer_diff import Layer, compare_layers
from ddcat_export.main_branch import prove_main_branch
from ddcat_export.onnx_export import MINIMUM_SIZE, build_graph
from ddcat_export.opsets import check_opset, lowered
from ddcat_export.parity import FP16_TOLERANCE, LOGIT_TOLERANCE, Parity, check_parity, sample_images, shapes_of
from ddcat_export.precision_cast import cast_graph
from ddcat_export.progress import Progress
from ddcat_export.ptq import REPORT, make_int8
from ddcat_export.sensitivity import LayerError
from ddcat_train.checkpoints import BEST, LAST, Checkpoint, load_checkpoint

__all__ = ["Exported", "diff_layers", "export"]


class Exported(NamedTuple):
    """
    A bundle that was just written, with measurements that no manifest holds, because another machine rounds otherwise.

    Attributes
    ----------
    bundle : Bundle
    parity : Parity
        How near the graph is to PyTorch, on images of many shapes.
    replay : Replay
        How the engine's labels of the golden images differ from those of PyTorch.
    layers : tuple of LayerError
        The cost of int8 in each layer, the worst first; empty where that was not measured.
    """

    bundle: Bundle
    parity: Parity
    replay: Replay
    layers: tuple[LayerError, ...] = ()


def export(
    checkpoint: str | Path,
    out: str | Path,
    *,
    engine: str = "ort",
    precision: Precision = "fp32",
    sizes: Sizes | None = None,
    max_size: tuple[int, int] | None = None,
    max_batch: int | None = None,
    logits: bool = False,
    confidence: bool = False,
    calibration: CalibrationKind = "mixed",
    calibration_images: int = 32,
    max_drop: float | None = None,
    opset: int = OPSET,
    data_root: str | Path | None = None,
    options: Mapping[str, Any] = MappingProxyType({}),
    key: str | Path | None = None,
    progress: Progress = lambda stage: None,
) -> Exported:
    """
    Export the main branch of a checkpoint into a new bundle, whole or not at all.

    Parameters
    ----------
    checkpoint : Path
        A checkpoint file, or a run directory, whose best checkpoint is taken.
    out : Path
        Must not exist, or be an empty directory.
    engine, precision : str
        See `ddcat_export.engines.check_possible`.
    sizes : tuple of (height, width), optional
        Sizes of the images, in pixels, 33 x 33 at least. Default: all sizes from 33 x 33 on.
    max_size, max_batch
        See `shapes_of_engine`.
    logits, confidence : bool
        Add the logits at low resolution, and the probability of each label, to the outputs.
    calibration, calibration_images, max_drop
        For int8: see `ddcat_export.ptq.make_int8`.
    opset : int
        Opset of the graph, for a runtime that reads no newer one.
    data_root : Path, optional
        Folder of the data set. Default: the folder in training.
    options : mapping of str to Any
        Keyword arguments of the runtime's `build`.
    key : Path, optional
        Private key to sign the manifest with.
    progress : callable, optional
        Called with the current stage.

    Raises
    ------
    ExportError
        Where the options are impossible, or the graph is not proven to be the main branch of the network.
    DdcatError
        Where the runtime cannot do it, the checkpoint or the data cannot be read, or `out` is taken or cannot be written.
    """
    checkpoint, out = Path(checkpoint), Path(out)
    data_root, key = (None if path is None else Path(path) for path in (data_root, key))
    check_possible(engine, precision)
    needed = graph_precision(engine, precision)
    check_opset(opset, needed)
    shapes = shapes_of_engine(engine, sizes, minimum=MINIMUM_SIZE, max_size=max_size, max_batch=max_batch)
    check_can_create(out)
    if key is not None:
        check_key(key)
    progress("reading the checkpoint")
    source = load_checkpoint(checkpoint)
    segmenter = source.segmenter()
    data = ExportData(source, root=data_root, size=sizes[0] if sizes is not None and len(sizes) == 1 else None)
    if precision == "int8":  # a fault in the data is reported before the long work begins
        progress("reading images")
        data.train(calibration_images)
        if max_drop is not None:
            data.val(calibration_images)
    progress("taking and attacking golden images")
    golden = golden_images(segmenter, data, shapes)
    progress("exporting the main branch")
    content = build_graph(segmenter, sizes=sizes, logits=logits, confidence=confidence)
    progress("exporting it once more, from other sizes and without the other heads")
    proof = prove_main_branch(segmenter, content, sizes=sizes, logits=logits, confidence=confidence)
    progress("comparing the graph with PyTorch")
    parity = check_parity(content, segmenter, shapes_of(sizes))
    if needed in ("fp16", "bf16"):
        progress(f"casting the graph to {needed}")
        content = cast_graph(content, needed)
    if needed == "fp16":  # no runtime of a CPU computes typed bf16: its engine is compared with PyTorch on the golden images
        parity = check_parity(content, segmenter, shapes_of(sizes), tolerance=FP16_TOLERANCE)
    made = None
    if needed == "int8":
        made = make_int8(
            data, segmenter, content, attack=training_attack(source), engine=engine, kind=calibration,
            images=calibration_images, max_drop=max_drop, progress=progress,
        )  # fmt: skip
    graphs = {GRAPH: content} if made is None else {GRAPH: made.signed, CPU_GRAPH: made.unsigned}
    if opset < OPSET:
        progress(f"converting the graph to opset {opset}")
        graphs = {name: lowered(graph, opset) for name, graph in graphs.items()}
        if needed in ("fp32", "fp16"):  # an int8 engine is compared with PyTorch on the golden images
            tolerance = FP16_TOLERANCE if needed == "fp16" else LOGIT_TOLERANCE
            parity = check_parity(graphs[GRAPH], segmenter, shapes_of(sizes), tolerance=tolerance)
    model = ExportedModel(
        graphs=graphs,
        reports={} if made is None or made.report is None else {REPORT: made.report},
        name=_name(source.path),
        source=_source(source),
        main_branch_only=proof,
        data=data.source,
        classes=_classes(source),
        preprocessing=Preprocessing(mean=_decimals(segmenter.normalise.mean), std=_decimals(segmenter.normalise.std)),
        shapes=shapes,
        opset=opset,
        quantisation=None if made is None else made.quantisation,
        rebuilt_from=None,
        golden=golden,
        versions={},
    )
    bundle, replay = assemble(out, model, engine=engine, precision=precision, options=options, key=key, progress=progress)
    assert replay is not None  # for the type checker: PyTorch has labelled all golden images
    return Exported(bundle, parity, replay, () if made is None else made.layers)


def diff_layers(
    checkpoint: Path,
    *,
    precision: Precision = "fp32",
    sizes: Sizes | None = None,
    progress: Progress = lambda stage: None,
) -> tuple[Layer, ...]:
    """
    Compare every layer of the graph with the same layer in PyTorch, on images of one shape.

    Parameters
    ----------
    checkpoint, sizes, progress
        As for `export`.
    precision : "fp32" or "fp16"

    Raises
    ------
    ExportError
        Where no runtime of a CPU computes in the precision.
    DdcatError
    """
    if precision not in ("fp32", "fp16"):
        raise ExportError(f"no layer can be compared in {precision}: use --precision fp32 or fp16")
    progress("reading the checkpoint")
    segmenter = load_checkpoint(checkpoint).segmenter()
    progress("exporting the main branch")
    content = build_graph(segmenter, sizes=sizes, logits=True, confidence=False)
    if precision == "fp16":
        content = cast_graph(content, precision)
    progress("comparing each layer with PyTorch")
    return compare_layers(content, segmenter, sample_images(shapes_of(sizes)[-1], 0))


def _source(source: Checkpoint) -> SourceCheckpoint:
    description = source.description
    return SourceCheckpoint(
        checkpoint=str(source.path.resolve()),
        sha256=source.sha256(),
        git_commit=provenance.git_commit(),
        method=description.config.method.name,
        attack=description.attack,
        architecture=description.architecture,
        step=description.step,
    )


def _classes(source: Checkpoint) -> tuple[ClassEntry, ...]:
    classes = source.description.classes
    return tuple(ClassEntry(name=n, colour=c) for n, c in zip(classes.names, classes.palette, strict=True))


def _name(checkpoint: Path) -> str:
    path = checkpoint.resolve()
    name = path.parent.name if path.name in (BEST, LAST) else path.stem
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).lstrip("._-") or "model"


def _decimals(values: Tensor) -> tuple[float, float, float]:
    # by way of float32's own shortest decimals: 0.485, not 0.48500001430511475
    first, second, third = (float(str(value)) for value in values.flatten().numpy().astype(np.float32))
    return first, second, third
