"""The inputs of an evaluation: a model's main branch, a split of its data, a bundle, a device."""

import os
from pathlib import Path

import torch

from ddcat.agent import under_agent
from ddcat.bundle import Bundle, open_bundle
from ddcat.choices import Device
from ddcat.engines.checks import check_size, format_sizes
from ddcat.engines.errors import InputError
from ddcat.extras import needing
from ddcat.manifest import InputShapes, Manifest
from ddcat.preprocess import FileRule
from ddcat_bench.arguments import check_model, check_source
from ddcat_bench.errors import BenchError
from ddcat_export.onnx_options import OnnxOptions
from ddcat_train.checkpoints import load_checkpoint
from ddcat_train.data import Dataset, open_dataset
from ddcat_train.distributed.ranks import check_device
from ddcat_train.errors import DataError
from ddcat_train.networks import Segmenter
from ddcat_train.reference import Reference

__all__ = [
    "check_sizes", "engine_batch_size", "main_branch", "open_any", "open_bundle_data", "open_reference", "open_split",
    "reference_of", "torch_device",
]  # fmt: skip

_MOST = 8  # images at once


def main_branch(reference: Reference, device: torch.device) -> Segmenter:
    """Build the network for evaluation: in eval(), no gradient of a parameter, channels last."""
    network = reference.segmenter().requires_grad_(False)
    return network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def torch_device(name: Device) -> torch.device:
    """
    Choose where PyTorch computes: of several processes each on a GPU of its own.

    Raises ConfigError if there is no GPU to compute on.
    """
    check_device(name, 1)
    if not torch.cuda.is_available() or name == "cpu":
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ["LOCAL_RANK"]) if under_agent() else 0)


def open_split(reference: Reference, *, data_root: Path | None = None, split: str | None = None) -> Dataset:
    """
    Open the data that a model is evaluated on, as it was during its training: same reader, same size; its validation split.

    `data_root` is the folder of the data set if it has moved since training. Raises BenchError if its classes are others, or
    the validation split has another list of images, and DataError.
    """
    data = reference.data
    return _open(
        data.name, data_root, data.root, split or data.val_split, usual=data.val_split, rule=data.rule,
        classes=reference.classes.names, known=(data.list_sha256, data.images), source=reference.path,
    )  # fmt: skip


def open_bundle_data(bundle: Bundle, *, data_root: Path | None = None, split: str | None = None) -> Dataset:
    """
    Open the data that an engine is evaluated on: the split that its manifest names, at its resolution.

    `data_root` is the folder of the data set if it has moved. Raises BenchError if its classes are others, or the manifest's
    split has another list of images, and DataError.
    """
    manifest, data = bundle.manifest, bundle.manifest.data
    return _open(
        data.name, data_root, Path(data.root) if data.root else None, split or data.split, usual=data.split,
        rule=manifest.evaluation_rule, classes=manifest.class_table().names, known=(data.list_sha256, data.images),
        source=bundle.path,
    )  # fmt: skip


def _open(
    name: str,
    moved_to: Path | None,
    root: Path | None,
    split: str,
    *,
    usual: str,
    rule: FileRule,
    classes: tuple[str, ...],
    known: tuple[str | None, int | None],
    source: Path,
) -> Dataset:
    """Open a data set at its new folder or its old one, and refuse other classes, or another list of the usual split."""
    place = moved_to or root
    if place is None:
        raise BenchError(f"{source} does not name a data set: use --data-root FOLDER")
    if root is not None and moved_to is None and not root.is_dir():
        seen_from = "" if root.is_absolute() else f", seen from {Path.cwd()}"
        raise BenchError(f"the data set of {source} is not at {root}{seen_from}: use --data-root FOLDER to say where it is now")
    try:
        dataset = open_dataset(name, place, split, rule=rule)
    except DataError as cause:
        if moved_to is not None:
            raise
        raise DataError(f"{cause}; if the data set has moved, use --data-root FOLDER") from cause
    if dataset.classes.names != classes:
        raise BenchError(
            f"the classes of {dataset.root} ({', '.join(dataset.classes.names)}) are not those of {source} "
            f"({', '.join(classes)}): use --data-root with the data set of its training"
        )
    list_sha256, images = known
    if split == usual and list_sha256 not in (None, dataset.list_sha256()):
        raise BenchError(
            f"the {split} split at {dataset.root} ({len(dataset)} images) is not the one that {source} names "
            f"({images} images): use --data-root with the right folder, or --split with another split"
        )
    return dataset


def engine_batch_size(bundle: Bundle) -> int:
    """Return the batch size of an engine's evaluation: eight, if it takes as many."""
    batch = bundle.manifest.shapes.batch
    return max(batch.minimum, min(_MOST, batch.maximum or _MOST))


def reference_of(bundle: Bundle, path: Path | None = None) -> Reference:
    """
    Load the very checkpoint or ONNX file that a bundle was made from; at `path` if it has moved.

    Raises BenchError if it is not there, or its SHA-256 is another.
    """
    source = bundle.manifest.source
    reference = open_reference(bundle.manifest, check_source(bundle, path))
    digest = reference.sha256()
    if digest != source.sha256:
        raise BenchError(
            f"{reference.path} is not the {_CALLED[source.kind]} that {bundle.path} was made from: SHA-256 {digest[:12]}..., "
            f"the manifest says {source.sha256[:12]}...: use --checkpoint with the right one, or export again"
        )
    return reference


_CALLED = {"checkpoint": "checkpoint", "onnx": "ONNX file"}


def open_any(path: Path, options: OnnxOptions, *, data_root: Path | None = None) -> Reference:
    """
    Open a checkpoint, the best one of a run, an ONNX file (which alone has options), or a bundle's own graph.

    `data_root` is the folder of the data set that it is evaluated on. Raises DdcatError.
    """
    kind = check_model(path)
    if kind != "onnx" and (given := options.given()):
        raise BenchError(f"--{given[0]} is for ONNX files, and {path} is not one: leave it out")
    if kind == "checkpoint":
        return load_checkpoint(path)
    with needing("bench,export,cpu"):
        from ddcat_export.bundle_reference import BundleReference  # noqa: PLC0415 -- optional libraries
        from ddcat_export.sources import open_onnx  # noqa: PLC0415
    return open_onnx(path, options, data_root=data_root) if kind == "onnx" else BundleReference(open_bundle(path))


def open_reference(manifest: Manifest, path: Path) -> Reference:
    """Load what a bundle was made from, as its manifest says how, whatever its hash. Raises DdcatError if it cannot be read."""
    if manifest.source.kind == "checkpoint":
        return load_checkpoint(path)
    from ddcat_export.onnx_file import OnnxFile  # noqa: PLC0415 -- an optional library

    return OnnxFile.of_manifest(manifest, path)


def check_sizes(bundle: Bundle, dataset: Dataset, *, cut: bool = False) -> None:
    """
    Refuse an engine that does not take the images that it is to be evaluated on, before anything is computed.

    With `cut`, larger images are cut by the bundle's rule for tiles: see `ddcat_bench.tiled`. Raises BenchError, which names
    the first such image and what to use.
    """
    shapes, tiles = bundle.manifest.shapes, bundle.manifest.preprocessing.tiles if cut else None
    sizes = [dataset.size(index) for index in range(len(dataset))]
    asked = sizes if tiles is None else [(min(tiles.side, height), min(tiles.side, width)) for height, width in sizes]
    wrong = [index for index, size in enumerate(asked) if not _taken(size, shapes)]
    if wrong:
        height, width = sizes[wrong[0]]
        raise BenchError(
            f"{bundle.path} takes {format_sizes(shapes)}, and {len(wrong)} of the {len(dataset)} images of {dataset.name} "
            f"{dataset.split} are of other sizes, {dataset.pairs[wrong[0]].image} of {height}x{width} (height x width): export "
            "for their sizes, or without --size for all"
        )


def _taken(size: tuple[int, int], shapes: InputShapes) -> bool:
    try:
        check_size(shapes.batch.minimum, *size, shapes)
    except InputError:
        return False
    return True
