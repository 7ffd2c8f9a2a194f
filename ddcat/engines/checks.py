"""Checks that all engines share, and texts about sizes and tensors."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ddcat.engines.errors import EngineError, InputError
from ddcat.manifest import DimRange, InputShapes, Manifest, TensorEntry

__all__ = [
    "check_declared_io",
    "check_images",
    "check_names",
    "check_precision",
    "check_size",
    "format_sizes",
    "format_tensors",
]

_OUTPUTS = ("labels", "logits", "confidence")


def check_images(images: npt.NDArray[Any], shapes: InputShapes, channels: int = 3) -> None:
    """
    Refuse images that an engine does not take.

    Parameters
    ----------
    images : array
        Should be (N, H, W, C) uint8.
    shapes : InputShapes
        From the bundle's manifest.
    channels : int
        C.

    Raises
    ------
    InputError
        Naming the sizes that it takes.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != channels:
        raise InputError(f"images are uint8 of shape (N, H, W, {channels}), not {images.dtype} of shape {images.shape}")
    count, height, width, _ = images.shape
    check_size(count, height, width, shapes)


def check_size(count: int, height: int, width: int, shapes: InputShapes) -> None:
    """Raise InputError for a batch or an image size that an engine does not take."""
    if count not in shapes.batch:
        raise InputError(f"Batch of {count}; this model takes batches of {_range(shapes.batch)}")
    fits = height in shapes.height and width in shapes.width
    if not fits or (shapes.sizes is not None and (height, width) not in shapes.sizes):
        raise InputError(f"Image is {width} x {height}; this model {_right_sizes(height, width, shapes)} (width x height)")


def _right_sizes(height: int, width: int, shapes: InputShapes) -> str:
    least, most = (shapes.width.minimum, shapes.height.minimum), (shapes.width.maximum, shapes.height.maximum)
    if shapes.sizes is not None or least == most:
        sizes = [least] if shapes.sizes is None else [(across, down) for down, across in shapes.sizes]
        return f"takes only {', '.join(f'{across} x {down}' for across, down in sizes)}"
    if width < least[0] or height < least[1]:
        return f"needs at least {least[0]} x {least[1]}"
    if None in most:
        return f"takes a {'width' if most[0] else 'height'} of at most {most[0] or most[1]}"
    return f"takes at most {most[0]} x {most[1]}"


def check_declared_io(inputs: tuple[TensorEntry, ...], outputs: tuple[TensorEntry, ...], manifest: Manifest) -> None:
    """Refuse a graph whose inputs and outputs, by its runtime, are not those of its manifest."""
    for what, stated, listed in (("inputs", inputs, manifest.inputs), ("outputs", outputs, manifest.outputs)):
        if stated != listed:
            raise EngineError(
                f"the {what} of {manifest.engine.file} are {format_tensors(stated)}, but the manifest of {manifest.name} says "
                f"{format_tensors(listed)}: export again"
            )


def check_names(inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Refuse a graph without the inputs and outputs of a segmenter."""
    if list(inputs) != ["image"] or list(outputs) != [name for name in _OUTPUTS if name in outputs] or outputs[0] != "labels":
        raise EngineError(
            f"the graph has inputs {list(inputs)} and outputs {list(outputs)}; a segmenter has input image and outputs labels "
            "and then, if any, logits and confidence"
        )


def check_precision(effective: str, asked: str, where: str) -> None:
    """Refuse a graph that does not compute in the requested precision."""
    if effective != asked:
        raise EngineError(f"{where} computes in {effective} where {asked} was asked for")


def format_sizes(shapes: InputShapes) -> str:
    """Describe the sizes and batches that an engine takes."""
    if shapes.sizes is not None:
        return f"{', '.join(f'{height}x{width}' for height, width in shapes.sizes)} in batches of {_range(shapes.batch)}"
    return f"height {_range(shapes.height)}, width {_range(shapes.width)} and batches of {_range(shapes.batch)}"


def format_tensors(entries: tuple[TensorEntry, ...]) -> str:
    """Describe inputs or outputs, in one line."""
    return ", ".join(f"{entry.name} {entry.dtype} ({_axes(entry)})" for entry in entries) or "none"


def _axes(entry: TensorEntry) -> str:
    # OpenVINO, alone of all, does not know the names of free axes
    return ", ".join("any" if size == "?" else str(size) for size in entry.shape)


def _range(sizes: DimRange) -> str:
    if sizes.maximum is None:
        return f"{sizes.minimum} or more"
    return str(sizes.minimum) if sizes.minimum == sizes.maximum else f"{sizes.minimum} to {sizes.maximum}"
