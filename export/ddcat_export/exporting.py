"""From a checkpoint to a bundle: export the main branch, prove it, cast or quantise it, and build the engine."""

import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from torch import nn

from ddcat.atomic_files import check_can_create
from ddcat.bundle import Bundle
from ddcat.choices import CalibrationKind, Precision
from ddcat.classes import Classes
from ddcat.confidence import Temperature
from ddcat.engines.golden import Replay
from ddcat.manifest import ClassEntry, Sizes
from ddcat.manifest_precision import MixedPrecision, Quantisation
from ddcat.signing import check_key
from ddcat.tiles import Tiles
from ddcat_export.abstention import choose_threshold
from ddcat_export.bundle_builder import CPU_GRAPH, GRAPH, ON_A_CPU, ExportedModel, assemble, graph_precision, shapes_of_engine
from ddcat_export.calibration import training_attack
from ddcat_export.confidence_options import check_confidence_options
from ddcat_export.data import ExportData, PictureFolder
from ddcat_export.errors import ExportError
from ddcat_export.finetune import finetune as finetune_weights
from ddcat_export.golden_images import golden_images
from ddcat_export.graph_checks import OPSET
from ddcat_export.layer_diff import Layer, compare_layers
from ddcat_export.mixed_precision import REPORT, make_mixed
from ddcat_export.modules import opened_model
from ddcat_export.onnx_export import MINIMUM_SIZE, build_graph
from ddcat_export.onnx_options import OnnxOptions
from ddcat_export.opsets import check_opset, lowered
from ddcat_export.option_checks import check_options
from ddcat_export.parity import FP16_TOLERANCE, Parity, check_parity, sample_images, shapes_of
from ddcat_export.precision_cast import cast_graph
from ddcat_export.progress import Progress
from ddcat_export.ptq import Finetune, make_int8
from ddcat_export.sensitivity import LayerError
from ddcat_export.sources import Source
from ddcat_export.temperature import fit_temperature, with_temperature
from ddcat_train.checkpoints import Checkpoint, load_checkpoint
from ddcat_train.networks import Segmenter
from ddcat_train.reference import Reference

__all__ = ["Exported", "diff_layers", "export"]


class Exported(NamedTuple):
    """
    A bundle that was just written, with measurements that no manifest holds, because another machine rounds otherwise.

    Attributes
    ----------
    bundle : Bundle
    parity : Parity or None
        How near the graph is to the model, on images of many shapes; None where another program quantised it.
    replay : Replay
        How the engine's labels of the golden images differ from those of the model in PyTorch.
    layers : tuple of LayerError
        The cost of int8 in each layer, or of fp16 or bf16 in each node, the worst first; empty where that was not measured.
    author : str
        Whose labels and logits it was compared with.
    """

    bundle: Bundle
    parity: Parity | None
    replay: Replay
    layers: tuple[LayerError, ...] = ()
    author: str = "PyTorch"


def export(
    source: str | Path | nn.Module,
    out: str | Path,
    *,
    engine: str = "ort",
    precision: Precision = "fp32",
    sizes: Sizes | None = None,
    max_size: tuple[int, int] | None = None,
    max_batch: int | None = None,
    logits: bool = False,
    confidence: bool = False,
    temperature: float | Literal["fit"] | None = None,
    risk: float | None = None,
    tiles: int | None = None,
    calibration: CalibrationKind = "mixed",
    calibration_images: int = 32,
    calibration_folder: str | Path | None = None,
    max_drop: float | None = None,
    finetune: int | None = None,
    opset: int = OPSET,
    data_root: str | Path | None = None,
    options: Mapping[str, Any] = MappingProxyType({}),
    key: str | Path | None = None,
    classes: str | Path | Classes | Sequence[str] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    scale: float = 1 / 255,
    output: str | None = None,
    layout: str = "folder",
    reference: str | Path | None = None,
    progress: Progress = lambda stage: None,
) -> Exported:
    """
    Export the main branch of a checkpoint, or the model in an ONNX file, into a new bundle, whole or not at all.

    Parameters
    ----------
    source : path, or torch.nn.Module
        A checkpoint file, a run directory, whose best checkpoint is taken, or an ONNX file (.onnx) of another program. Or a
        network in Python, on the CPU, that maps images to logits: it is written to `out` with .onnx behind its name, which a
        gate compares the engine with, and is an ONNX file from there on.
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
    temperature : float or "fit", optional
        Divide the logits by it before the softmax of the confidence; "fit": by the one that makes the labels of the validation
        split likeliest (`ddcat_export.temperature.fit_temperature`).
    risk : float, optional
        Choose a threshold of the confidence by which the engine may abstain, so that at most this share of the labelled pixels
        is answered and wrong: see `ddcat_export.abstention`.
    tiles : int, optional
        Cut larger images into tiles of this side, which share a quarter of it with each neighbour. The engine takes no larger
        images whole, and the logits are among its outputs: tiles are blended in them.
    calibration, calibration_images, max_drop
        For int8: see `ddcat_export.ptq.make_int8`. For fp16 and bf16, with `max_drop`: see
        `ddcat_export.mixed_precision.make_mixed`.
    calibration_folder : path, optional
        For int8: images without labels in place of the data set; the model's own labels stand for theirs.
    finetune : int, optional
        For int8 of a checkpoint: updates by which its weights are trained for it, see `ddcat_export.finetune.finetune`.
    opset : int
        Opset of the graph, for a runtime that reads no newer one.
    data_root : Path, optional
        Folder of the data set. Default: the folder in training.
    options : mapping of str to Any
        Keyword arguments of the runtime's `build`.
    key : Path, optional
        Private key to sign the manifest with.
    classes, mean, std, scale, output, layout, reference
        Of an ONNX file or a network in Python: see `ddcat_export.onnx_options.OnnxOptions`. Such a network is fed images in
        [0, 1] unless `mean` and `std` are given.
    progress : callable, optional
        Called with the current stage.

    Raises
    ------
    ExportError
        Where the options are impossible, or the graph is not proven to be the main branch of the network.
    DdcatError
        Where the runtime cannot do it, the checkpoint or the data cannot be read, or `out` is taken or cannot be written.
    """
    check_options(engine, precision, max_drop, sizes, max_batch, tiles)
    out, (data_root, key) = Path(out), (None if path is None else Path(path) for path in (data_root, key))
    limited = max_drop is not None and precision in ("fp16", "bf16")
    needed = graph_precision(engine, precision, mixed=limited)
    check_opset(opset, needed)
    check_can_create(out)
    check_confidence_options(confidence=confidence, temperature=temperature, risk=risk)
    rule, max_size = _rule_of_tiles(tiles, sizes, max_size)
    if key is not None:
        check_key(key)
    progress("reading the model")
    with opened_model(
        source, OnnxOptions(classes, mean, std, scale, output, layout, reference), beside=out, sizes=sizes, data_root=data_root
    ) as model:
        _check_precision(source, model, precision, finetune, calibration_folder)
        sizes, max_batch = model.sizes(sizes), model.max_batch(max_batch)
        shapes = shapes_of_engine(engine, sizes, minimum=MINIMUM_SIZE, max_size=max_size, max_batch=max_batch)
        segmenter = model.reference.segmenter()
        data = _data(
            model.reference, segmenter, sizes, root=data_root, folder=calibration_folder,
            labelled=temperature == "fit" or risk is not None,
        )  # fmt: skip
        calibrated = precision == "int8" and model.given is None
        if calibrated or limited:  # a fault in the data is reported before the long work begins
            progress("reading images")
            data.train(calibration_images)
            if max_drop is not None:
                data.val(calibration_images)
        progress("choosing and attacking golden images")
        golden = golden_images(segmenter, data, shapes)
        progress("exporting the main branch")
        content = model.graph(segmenter, sizes=sizes, logits=logits or rule is not None, confidence=confidence)
        progress("exporting it again, from other sizes and without the other heads")
        proof = model.prove(segmenter, content, sizes=sizes, logits=logits or rule is not None, confidence=confidence)
        content, heat = _tempered(content, temperature, data, segmenter, progress)
        progress(f"comparing the graph with {model.author}")
        compared, tried = model.compared(segmenter), model.shapes(sizes)
        checked = partial(check_parity, segmenter=compared, shapes=tried, temperature=1.0 if heat is None else heat.value)
        parity = checked(content) if model.given is None else None
        made = _in_precision(
            content, needed, model, data, segmenter, engine=engine, kind=calibration, images=calibration_images,
            max_drop=max_drop, progress=progress,
            finetune=None if finetune is None else _finetune(model.reference, data, finetune, sizes, engine, progress),
        )  # fmt: skip
        graphs = made.graphs
        if opset < OPSET:
            progress(f"converting the graph to opset {opset}")
            graphs = {name: lowered(graph, opset) for name, graph in graphs.items()}
        # No runtime of a CPU computes typed bf16: its engine is compared on the golden images, and so is int8. Nodes that were
        # kept in fp32 for equal labels on the data have been proven on the data; logits of made-up images may be further off.
        if needed == "fp16" and max_drop is None:
            parity = _compared_in_fp16(checked, graphs[GRAPH])
        elif needed == "fp32" and opset < OPSET:
            parity = checked(graphs[GRAPH])
        exported = ExportedModel(
            graphs=graphs,
            reports={} if made.report is None else {REPORT: made.report},
            golden=golden,
            shapes=shapes,
            entries={
                "name": _name(model.stem),
                "source": model.entry(),
                "main_branch_only": proof,
                "data": data.source,
                "classes": _classes(model.reference),
                "preprocessing": model.preprocessing(segmenter).model_copy(update={"tiles": rule}),
                "opset": opset,
                "quantisation": made.quantisation,
                "mixed": made.mixed,
                "temperature": heat,
            },
        )
        bundle, replay = assemble(
            out, exported, engine=engine, precision=precision, options=options, key=key, progress=progress,
            abstain=None if risk is None else partial(choose_threshold, data, risk=risk, progress=progress),
        )  # fmt: skip
        assert replay is not None  # for the type checker: PyTorch has labelled all golden images
        return Exported(bundle, parity, replay, made.layers, model.author)


class _Made(NamedTuple):
    graphs: dict[str, bytes]
    quantisation: Quantisation | None = None
    mixed: MixedPrecision | None = None
    report: bytes | None = None
    layers: tuple[LayerError, ...] = ()


def _in_precision(
    content: bytes,
    precision: Precision,
    model: Source,
    data: ExportData,
    segmenter: Segmenter,
    *,
    engine: str,
    kind: CalibrationKind,
    images: int,
    max_drop: float | None,
    finetune: Finetune | None,
    progress: Progress,
) -> _Made:
    """Write a graph in the precision that an engine is built from."""
    if precision == "fp32" or model.given is not None:
        return _Made({GRAPH: content}, model.given)
    attack = training_attack(model.reference)
    if precision == "int8":
        int8 = make_int8(
            data, segmenter, content, attack=attack, engine=engine, kind=kind, images=images, max_drop=max_drop,
            finetune=finetune, progress=progress,
        )  # fmt: skip
        return _Made({GRAPH: int8.signed, CPU_GRAPH: int8.unsigned}, int8.quantisation, None, int8.report, int8.layers)
    progress(f"casting the graph to {precision}")
    if max_drop is None:
        return _Made({GRAPH: cast_graph(content, precision)})
    mixed = make_mixed(
        data, segmenter, content, precision, attack=attack, engine=engine, kind=kind, images=images, max_drop=max_drop,
        progress=progress,
    )  # fmt: skip
    return _Made({GRAPH: mixed.graph}, None, mixed.mixed, mixed.report, mixed.nodes)


def _compared_in_fp16(checked: "partial[Parity]", graph: bytes) -> Parity:
    try:
        return checked(graph, tolerance=FP16_TOLERANCE)
    except ExportError as cause:
        raise ExportError(f"{cause}: use --max-drop 0.2, which keeps nodes in fp32, or --precision fp32") from cause


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
    return compare_layers(content, segmenter, sample_images(shapes_of(sizes)[-1], 0, segmenter.bands))


def _data(
    reference: Reference, segmenter: Segmenter, sizes: Sizes | None, *, root: Path | None, folder: str | Path | None,
    labelled: bool,
) -> ExportData:  # fmt: skip
    if folder is None:
        data = ExportData(reference, root=root, size=_only(sizes))
    else:
        data = PictureFolder(reference, folder=Path(folder), segmenter=segmenter, size=_only(sizes))
    if labelled:
        data.val_dataset()  # where it is missing, that is said before the long work begins
    return data


def _tempered(
    content: bytes, asked: float | Literal["fit"] | None, data: ExportData, segmenter: Segmenter, progress: Progress
) -> tuple[bytes, Temperature | None]:
    if asked is None:
        return content, None
    if asked == "fit":
        progress("fitting the temperature on the validation split")
        found = fit_temperature(data, segmenter)
    else:
        found = Temperature(value=float(asked), images=None)
    return with_temperature(content, found.value), found


def _check_precision(
    source: object, model: Source, precision: Precision, finetune: int | None, folder: str | Path | None
) -> None:
    if model.given is not None and precision != "int8":
        raise ExportError(f"{source} is quantised: use --precision int8")
    if finetune is None:
        return
    if precision != "int8":
        raise ExportError(f"--finetune has no effect here, because the precision is {precision}: leave it out")
    if not isinstance(model.reference, Checkpoint):
        raise ExportError(
            f"--finetune needs the configuration of a checkpoint, and {model.reference.path} has none: leave it out"
        )
    if folder is not None:
        raise ExportError("--finetune trains on labelled images: use --data-root in place of --calibration-folder")


def _finetune(
    reference: Reference, data: ExportData, updates: int, sizes: Sizes | None, engine: str, progress: Progress
) -> Finetune:
    assert isinstance(reference, Checkpoint)  # as checked
    return partial(
        finetune_weights, reference, data_root=Path(data.source.root), updates=updates, size=_only(sizes),
        unsigned=engine in ON_A_CPU, progress=progress,
    )  # fmt: skip


def _only(sizes: Sizes | None) -> tuple[int, int] | None:
    return sizes[0] if sizes is not None and len(sizes) == 1 else None


def _rule_of_tiles(
    side: int | None, sizes: Sizes | None, max_size: tuple[int, int] | None
) -> tuple[Tiles | None, tuple[int, int] | None]:
    """Return the rule for tiles, and the largest size of the engine, which is given nothing larger than they are."""
    if side is None:
        return None, max_size
    if max_size is not None or (sizes is not None and sizes != ((side, side),)):
        raise ExportError(f"--tiles {side} already limits the engine to {side}x{side}: leave --size and --max-size out")
    return Tiles(side=side, overlap=side // 4), (side, side) if sizes is None else None


def _classes(reference: Reference) -> tuple[ClassEntry, ...]:
    return tuple(ClassEntry(name=n, colour=c) for n, c in zip(reference.classes.names, reference.classes.palette, strict=True))


def _name(stem: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).lstrip("._-") or "model"
