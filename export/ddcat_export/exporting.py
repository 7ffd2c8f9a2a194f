"""From a checkpoint to a bundle: export the main branch, prove it, and write what is known about it."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from ddcat import provenance
from ddcat.bundle import Bundle, entries, write_bundle
from ddcat.files import check_vacant
from ddcat.manifest import (
    ClassEntry,
    DataSource,
    EngineEntry,
    MainBranchProof,
    Manifest,
    Preprocessing,
    Range,
    Shapes,
    Source,
)
from ddcat_export.errors import ExportError
from ddcat_export.graph import MINIMUM_SIZE, OPSET, build_graph, prove_main_branch
from ddcat_export.sweep import Sweep, shapes_of, sweep
from ddcat_serve.engines.onnxruntime import open_graph
from ddcat_train.checkpoints import BEST, LAST, Checkpoint, load_checkpoint
from ddcat_train.networks import Segmenter

__all__ = ["Exported", "export"]

_FILE = "model.onnx"
_LIBRARIES = ("torch", "onnx", "onnxscript", "onnxruntime", "numpy")


@dataclass(frozen=True, kw_only=True)
class Exported(Bundle):
    """
    A bundle that was just written.

    Attributes
    ----------
    sweep : Sweep
        How near the graph is to PyTorch on this machine; another one rounds otherwise, so the manifest does not hold it.
    """

    sweep: Sweep


def export(
    checkpoint: Path,
    out: Path,
    *,
    engine: str = "ort",
    precision: str = "fp32",
    size: tuple[int, int] | None = None,
    logits: bool = False,
    progress: Callable[[str], None] = lambda stage: None,
) -> Exported:
    """
    Export the main branch of a checkpoint into a new bundle, whole or not at all.

    Parameters
    ----------
    checkpoint : Path
        A checkpoint file, or a run directory, whose best one is taken.
    out : Path
        Must not exist, or be an empty directory.
    engine, precision : str
        This version builds "ort" at "fp32".
    size : (height, width), optional
        Of the images, in pixels, 33 x 33 at least; free from there on if not given. The batch is always free.
    logits : bool
        Give the logits at low resolution as a second output.
    progress : callable, optional
        Is told what is being done.

    Raises
    ------
    ExportError
        Where the options are not possible, or the graph is not proven to be the main branch of the network.
    DdcatError
        Where the checkpoint cannot be read, or `out` is taken or cannot be written.
    """
    if (engine, precision) != ("ort", "fp32"):
        raise ExportError(f"engine {engine} at {precision} cannot be built: this version builds engine ort at fp32")
    if size is not None and min(size) < MINIMUM_SIZE:
        raise ExportError(f"size {size[0]}x{size[1]} is too small: {MINIMUM_SIZE}x{MINIMUM_SIZE} or more would be right")
    check_vacant(out)
    progress("reading the checkpoint")
    source = load_checkpoint(checkpoint)
    segmenter = source.segmenter()
    progress("exporting the main branch")
    content = build_graph(segmenter, size=size, logits=logits)
    progress("exporting it once more, with NaN in all other heads")
    proof = prove_main_branch(segmenter, content, size=size, logits=logits)
    progress("comparing the graph with PyTorch")
    swept = sweep(content, segmenter, shapes_of(size))
    files = {_FILE: content}
    manifest = _describe(source, segmenter, files, proof, size)
    return Exported(**vars(write_bundle(out, manifest, files)), sweep=swept)


def _describe(
    source: Checkpoint,
    segmenter: Segmenter,
    files: dict[str, bytes],
    proof: MainBranchProof,
    size: tuple[int, int] | None,
) -> Manifest:
    description = source.description
    config, classes, val = description.config, description.classes, description.val
    sides = [Range(minimum=MINIMUM_SIZE, maximum=None)] * 2 if size is None else [Range(minimum=s, maximum=s) for s in size]
    with open_graph(files[_FILE]) as graph:
        inputs, outputs, provider = graph.inputs, graph.outputs, str(graph.description["provider"])
    return Manifest(
        name=_name(source.path),
        files=entries(files),
        source=Source(
            checkpoint=str(source.path.resolve()),
            sha256=source.sha256(),
            git_commit=provenance.git_commit(),
            method=config.method.name,
            attack=description.attack,
            architecture=description.architecture,
            step=description.step,
        ),
        main_branch_only=proof,
        data=DataSource(
            name=config.data.name,
            root=str(config.data.root),
            split=config.data.val_split,
            list_sha256=None if val is None else val.list_sha256,
            images=None if val is None else val.images,
            long_side=config.data.judged_long_side,
        ),
        classes=tuple(ClassEntry(name=n, colour=c) for n, c in zip(classes.names, classes.palette, strict=True)),
        preprocessing=Preprocessing(mean=_decimals(segmenter.normalise.mean), std=_decimals(segmenter.normalise.std)),
        shapes=Shapes(batch=Range(minimum=1, maximum=None), height=sides[0], width=sides[1]),
        inputs=inputs,
        outputs=outputs,
        opset=OPSET,
        engine=EngineEntry(name="ort", file=_FILE, requested_precision="fp32", effective_precision="fp32", provider=provider),
        versions=provenance.versions(_LIBRARIES),
    )


def _name(checkpoint: Path) -> str:
    path = checkpoint.resolve()
    name = path.parent.name if path.name in (BEST, LAST) else path.stem
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).lstrip("._-") or "model"


def _decimals(values: Tensor) -> tuple[float, float, float]:
    # by way of float32's own shortest decimals: 0.485, not 0.48500001430511475
    first, second, third = (float(str(value)) for value in values.flatten().numpy().astype(np.float32))
    return first, second, third
