"""The last steps of every export: build an engine from a typed graph, label golden images with it, and write the bundle."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ddcat import provenance
from ddcat.bundle import Bundle, entries, write_bundle
from ddcat.choices import Precision
from ddcat.confidence import Abstention
from ddcat.engines import Engine, golden, open_engine
from ddcat.engines.golden import Example, Replay
from ddcat.manifest import DimRange, Golden, InputShapes, Manifest, Sizes
from ddcat_export.engines import build_engine
from ddcat_export.errors import ExportError
from ddcat_export.golden_labels import label_on_cpu
from ddcat_export.progress import Progress

__all__ = [
    "CPU_GRAPH",
    "GRAPH",
    "ON_A_CPU",
    "BuildResult",
    "ExportedModel",
    "GoldenImages",
    "assemble",
    "graph_precision",
    "shapes_of_engine",
]

GRAPH = "model.onnx"
# An int8 graph with unsigned activations: twice the steps behind a ReLU, and quicker on x86, with ONNX Runtime by far.
CPU_GRAPH = "model.cpu.onnx"
ON_A_CPU = ("ort", "openvino")
_LIBRARIES = (
    "torch", "onnx", "onnxscript", "onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "tensorrt-rtx", "cuda-python",
    "numpy", "safetensors",
)  # fmt: skip
# Share of the golden pixels that may differ. Another runtime or precision rounds otherwise; an engine that differs by more is
# another model.
_TOLERATED: dict[Precision, float] = {"fp32": 0.002, "fp16": 0.05, "bf16": 0.25, "int8": 0.25}
_PLANNED = ("trt", "trt-rtx")  # a plan holds memory for its largest batch and images
_PLANNED_BATCH = 8


@dataclass(frozen=True)
class GoldenImages:
    """
    Images for `ddcat.engines.golden`, before an engine has labelled them.

    Attributes
    ----------
    images : mapping of str to (H, W, 3) uint8
        By the names of `ddcat.engines.golden.Example`.
    expected : mapping of str to (H, W) uint8
        Labels of some of the images, by PyTorch or by the engine of the bundle that this one is rebuilt from.
    precision : Precision
        Precision of the expected labels.
    source : str
        Origin of the images.
    attack : dict
        The attack that made the adversarial ones.
    """

    images: Mapping[str, npt.NDArray[np.uint8]]
    expected: Mapping[str, npt.NDArray[np.uint8]]
    precision: Precision
    source: str
    attack: dict[str, object]


@dataclass(frozen=True)
class ExportedModel:
    """
    Typed graphs with the entries of their manifest, whatever the engine.

    Attributes
    ----------
    graphs : mapping of str to bytes
        `GRAPH`, and `CPU_GRAPH` where there is one.
    reports : mapping of str to bytes
        Further files of the bundle, for people.
    golden : GoldenImages
    shapes : InputShapes
    entries : mapping of str to Any
        All other fields of the `Manifest` but those of the engine that `assemble` builds. `versions` are those of the process
        that made the graph, if it was not this one.
    """

    graphs: Mapping[str, bytes]
    reports: Mapping[str, bytes]
    golden: GoldenImages
    shapes: InputShapes
    entries: Mapping[str, Any]


class BuildResult(NamedTuple):
    """
    A bundle that was just written.

    Attributes
    ----------
    bundle : Bundle
    replay : Replay or None
        How the engine's labels of the golden images differ from the expected ones; None where none were known.
    """

    bundle: Bundle
    replay: Replay | None


def graph_precision(engine: str, precision: Precision, *, mixed: bool = False) -> Precision:
    """Return the precision of the graph that an engine is built from: OpenVINO makes bf16 of fp32 itself, if all is bf16."""
    return "fp32" if (engine, precision) == ("openvino", "bf16") and not mixed else precision


def shapes_of_engine(
    engine: str,
    sizes: Sizes | None,
    *,
    minimum: int,
    max_size: tuple[int, int] | None = None,
    max_batch: int | None = None,
) -> InputShapes:
    """
    Return the image sizes and batches that an engine must take.

    Parameters
    ----------
    engine : str
    sizes : tuple of (height, width), or None
        The only sizes; None: all sizes of at least `minimum` pixels a side.
    minimum : int
    max_size : (height, width), optional
        Largest sides where `sizes` is None. Default: no limit.
    max_batch : int, optional
        Largest batch. Default: no limit, but 8 for a plan of TensorRT.

    Raises
    ------
    ExportError
        Where a size is too small, or a plan of TensorRT has no largest size.
    """
    if max_size is not None and sizes is not None:
        raise ExportError("--max-size has no effect beside --size, which names all sizes: leave one of them out")
    if engine in _PLANNED:
        if sizes is None and max_size is None:
            raise ExportError(
                f"engine {engine} reserves memory for the largest images: use --size HxW, one or several, or --max-size HxW"
            )
        max_batch = max_batch or _PLANNED_BATCH
    batch = DimRange(minimum=1, maximum=max_batch)
    if sizes is None:
        if max_size is not None and min(max_size) < minimum:
            raise ExportError(f"--max-size {max_size[0]}x{max_size[1]} is too small: use {minimum}x{minimum} or more")
        rows, columns = (DimRange(minimum=minimum, maximum=most) for most in max_size or (None, None))
        return InputShapes(batch=batch, height=rows, width=columns)
    for height, width in sizes:
        if min(height, width) < minimum:
            raise ExportError(f"size {height}x{width} is too small: use {minimum}x{minimum} or more")
    ladder = tuple(sorted(set(sizes), key=lambda size: (size[0] * size[1], size)))
    sides = [DimRange(minimum=min(side), maximum=max(side)) for side in zip(*ladder, strict=True)]
    return InputShapes(batch=batch, height=sides[0], width=sides[1], sizes=ladder if len(ladder) > 1 else None)


def assemble(
    out: Path,
    model: ExportedModel,
    *,
    engine: str,
    precision: Precision,
    options: Mapping[str, Any] = MappingProxyType({}),
    key: Path | None = None,
    abstain: Callable[[Engine, Manifest], Abstention] | None = None,
    progress: Progress,
) -> BuildResult:
    """
    Build an engine, label the golden images with it, and write the bundle, whole or not at all.

    Parameters
    ----------
    out : Path
        Must not exist, or be an empty directory.
    model : ExportedModel
    engine, precision : str
        See `ddcat_export.engines.build_engine`.
    options : mapping of str to Any
        Keyword arguments of the runtime's `build`.
    key : Path, optional
        Private key to sign the manifest with.
    abstain : callable, optional
        Chooses the threshold to abstain by, from the engine's own answers.
    progress : callable
        Called with the current stage.

    Raises
    ------
    ExportError
        Where it is to choose a threshold, and does not run here, or the engine's labels are not the expected ones.
    DdcatError
        Where the runtime refuses, or `out` cannot be written.
    """
    progress(f"building the engine, {engine} {precision}")
    file = CPU_GRAPH if engine in ON_A_CPU and CPU_GRAPH in model.graphs else GRAPH
    built = build_engine(engine, model.graphs[file], file=file, precision=precision, shapes=model.shapes, **options)
    entry = built.entry.model_copy(update={"graph": GRAPH})

    def describe(files: Mapping[str, bytes], labelled: Golden | None, abstention: Abstention | None) -> Manifest:
        built_here = {
            "files": entries(files),
            "shapes": model.shapes,
            "inputs": built.inputs,
            "outputs": built.outputs,
            "engine": entry,
            "abstention": abstention,
            "golden": labelled,
            "versions": {**model.entries.get("versions", {}), **provenance.versions(_LIBRARIES)},
        }
        return Manifest(**{**model.entries, **built_here})

    files = {**model.graphs, **model.reports, **built.files}
    labelled_by, abstention = None, model.entries.get("abstention")
    if abstain is not None and not built.runs_here:
        raise ExportError("--risk needs the engine's own outputs, but this machine has no GPU to run it: leave --risk out")
    if built.runs_here:
        progress("labelling the golden images with the engine")
        manifest = describe(files, None, None)
        with open_engine(Bundle(out, manifest, "", files)) as opened:
            examples = golden.label_images(opened, model.golden.images)
            abstention = abstention if abstain is None else abstain(opened, manifest)
    else:
        progress("labelling the golden images with ONNX Runtime")
        examples, labelled_by = label_on_cpu(model.graphs[file], model.golden.images)
    replay = _check(examples, model.golden, precision) if model.golden.expected else None
    files[golden.FILE] = golden.pack(examples)
    labelled = Golden(
        file=golden.FILE,
        images=len(examples) // 2,
        source=model.golden.source,
        attack=dict(model.golden.attack),
        labelled_by=labelled_by,
    )
    progress("writing the bundle")
    return BuildResult(write_bundle(out, describe(files, labelled, abstention), files, key=key), replay)


def _check(examples: tuple[Example, ...], known: GoldenImages, precision: Precision) -> Replay:
    replay = golden.compare(examples, known.expected)
    tolerated = max(_TOLERATED[precision], _TOLERATED[known.precision])
    if replay.share > tolerated:
        raise ExportError(
            f"the engine differs from the model: {100 * replay.share:.3g} % of its labels on the golden images are not the "
            f"expected ones, and {100 * replay.worst_share:.3g} % on {replay.worst}; at {precision} {100 * tolerated:g} % may "
            "differ"
        )
    return replay
