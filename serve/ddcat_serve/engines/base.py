"""What every engine is, whatever its runtime."""

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
import numpy.typing as npt

from ddcat.manifest import EngineEntry, Manifest, Range, Shapes, TensorEntry
from ddcat_serve.errors import EngineError, InputError

__all__ = [
    "Built",
    "Engine",
    "Graph",
    "GraphEngine",
    "Images",
    "Outputs",
    "check_images",
    "check_names",
    "check_precision",
    "check_statement",
    "memory_file",
    "physical_cores",
    "smallest_batch",
]

if sys.platform != "win32":
    import fcntl

Images = npt.NDArray[np.uint8]

_OUTPUTS = ("labels", "logits", "confidence")


@dataclass(frozen=True)
class Outputs:
    """
    What an engine says about a batch.

    Attributes
    ----------
    labels : (N, H, W) uint8
        Class of each pixel, in 0..K-1.
    logits : (N, K, h, w) float32, or None
        At the resolution at which the network computes them; None where the graph does not give them.
    confidence : (N, H, W) float32, or None
        Probability of each pixel's label, in [0, 1]: its softmax; None where the graph does not give it.
    """

    labels: npt.NDArray[np.uint8]
    logits: npt.NDArray[np.float32] | None = None
    confidence: npt.NDArray[np.float32] | None = None


class Built(NamedTuple):
    """
    What building an engine leaves, for a manifest and a bundle.

    Attributes
    ----------
    files : dict of str to bytes
        Beside the graph; none where the runtime loads the graph itself.
    entry : EngineEntry
    inputs, outputs : tuple of TensorEntry
        As the runtime itself states them.
    """

    files: dict[str, bytes]
    entry: EngineEntry
    inputs: tuple[TensorEntry, ...]
    outputs: tuple[TensorEntry, ...]


class Graph(Protocol):
    """A graph that is loaded and ready to run, before anything is known about the sizes that it takes."""

    @property
    def inputs(self) -> tuple[TensorEntry, ...]:
        """Inputs of the graph, as the runtime itself states them."""

    @property
    def outputs(self) -> tuple[TensorEntry, ...]:
        """Outputs of the graph, as the runtime itself states them."""

    @property
    def description(self) -> Mapping[str, str | int | bool]:
        """Runtime, provider, precision, threads and whatever else a measurement depends on."""

    def run(self, images: npt.NDArray[Any]) -> Outputs:
        """
        Run the graph on whatever it is given, which should be (N, H, W, 3) uint8.

        Raises
        ------
        EngineError
            Where the runtime refuses or fails.
        """

    def close(self) -> None:
        """Give the runtime's memory back; the graph can do nothing after it."""


class Engine(Protocol):
    """A graph that is loaded and ready to run."""

    @property
    def inputs(self) -> tuple[TensorEntry, ...]:
        """Inputs of the graph, as the runtime itself states them."""

    @property
    def outputs(self) -> tuple[TensorEntry, ...]:
        """Outputs of the graph, as the runtime itself states them."""

    @property
    def description(self) -> Mapping[str, str | int | bool]:
        """Runtime, provider, precision, threads and whatever else a measurement depends on."""

    def infer(self, images: Images) -> Outputs:
        """
        Segment a batch.

        Parameters
        ----------
        images : (N, H, W, 3) uint8
            RGB.

        Raises
        ------
        InputError
            Where the type, rank or size is not one that the bundle was checked with.
        EngineError
            Where the runtime fails.
        """

    def close(self) -> None:
        """Give the runtime's memory back; the engine can do nothing after it."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...


class GraphEngine:
    """
    A graph together with the sizes that its bundle was checked with: an `Engine`.

    Parameters
    ----------
    graph : Graph
        Is closed with the engine.
    manifest : Manifest
        Of the bundle that it is from.

    Raises
    ------
    EngineError
        Where the graph is not what the manifest says.
    """

    def __init__(self, graph: Graph, manifest: Manifest) -> None:
        check_statement(graph.inputs, graph.outputs, manifest)
        self._graph, self._shapes = graph, manifest.shapes
        self.inputs, self.outputs, self.description = graph.inputs, graph.outputs, graph.description

    def infer(self, images: Images) -> Outputs:
        """Segment a batch: see `Engine.infer`."""
        check_images(images, self._shapes)
        outputs = self._graph.run(images)
        if outputs.labels.shape != images.shape[:3] or outputs.labels.dtype != np.uint8:
            raise EngineError(f"labels {outputs.labels.dtype} {outputs.labels.shape} came back for images {images.shape}")
        return outputs

    def close(self) -> None:
        """Close the graph."""
        self._graph.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()


def check_images(images: npt.NDArray[Any], shapes: Shapes) -> None:
    """
    Refuse images that an engine does not take.

    Parameters
    ----------
    images : array
        Should be (N, H, W, 3) uint8.
    shapes : Shapes
        Of the bundle's manifest.

    Raises
    ------
    InputError
        Saying what would be right.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise InputError(f"images are uint8 of shape (N, H, W, 3), not {images.dtype} of shape {images.shape}")
    count, height, width, _ = images.shape
    check_size(count, height, width, shapes)


def check_size(count: int, height: int, width: int, shapes: Shapes) -> None:
    """Refuse, by an InputError, a number of images or a size of them that an engine does not take."""
    for size, axis, allowed in (
        (count, "batch", shapes.batch),
        (height, "height", shapes.height),
        (width, "width", shapes.width),
    ):
        if size not in allowed:
            raise InputError(f"{axis} {size} does not fit this model, which takes {_sizes(shapes)}")
    if shapes.sizes is not None and (height, width) not in shapes.sizes:
        raise InputError(f"{height}x{width} (height x width) does not fit this model, which takes {_sizes(shapes)}")


def check_statement(inputs: tuple[TensorEntry, ...], outputs: tuple[TensorEntry, ...], manifest: Manifest) -> None:
    """Refuse a graph whose inputs and outputs, as the runtime states them, are not those of its manifest."""
    for what, stated, listed in (("inputs", inputs, manifest.inputs), ("outputs", outputs, manifest.outputs)):
        if stated != listed:
            raise EngineError(
                f"the {what} of {manifest.engine.file} are {_tensors(stated)}, but the manifest of {manifest.name} says "
                f"{_tensors(listed)}: export again"
            )


def check_names(inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Refuse a graph that is no segmenter's by the names of its inputs and outputs."""
    if list(inputs) != ["image"] or list(outputs) != [name for name in _OUTPUTS if name in outputs] or outputs[0] != "labels":
        raise EngineError(
            f"the graph has inputs {list(inputs)} and outputs {list(outputs)}; a segmenter has input image and outputs labels "
            "and then, if any, logits and confidence"
        )


def check_precision(effective: str, asked: str, where: str) -> None:
    """Refuse a graph that does not compute in the precision that was asked for."""
    if effective != asked:
        raise EngineError(f"{where} computes in {effective} where {asked} was asked for")


def smallest_batch(shapes: Shapes) -> Images:
    """Give black images of the smallest batch and size that an engine takes."""
    height, width = shapes.sizes[0] if shapes.sizes is not None else (shapes.height.minimum, shapes.width.minimum)
    return np.zeros((shapes.batch.minimum, height, width, 3), np.uint8)


@contextlib.contextmanager
def memory_file(content: bytes) -> Iterator[str | bytes]:
    """
    Yield the path of a file in memory that holds verified bytes, and that nobody can change.

    A runtime reads it like any other file; given the bytes themselves, it would make and keep copies of them.

    Yields
    ------
    str, or the bytes where the system has no such files
    """
    if not hasattr(os, "memfd_create"):
        yield content
        return
    with os.fdopen(os.memfd_create("graph.onnx", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING), "wb") as file:
        file.write(content)
        file.flush()
        fcntl.fcntl(file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        yield f"/proc/self/fd/{file.fileno()}"


def physical_cores() -> int:
    """
    Cores that this process may use, hyper-threads counted once: the number of threads at which convolutions are fastest.

    Where the system does not say which processors share a core, every processor counts.
    """
    processors = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    cores = set()
    for processor in processors:
        try:
            siblings = Path(f"/sys/devices/system/cpu/cpu{processor}/topology/thread_siblings_list").read_text(encoding="ascii")
        except OSError:
            siblings = str(processor)
        cores.add(siblings.strip())
    return len(cores)


def _sizes(shapes: Shapes) -> str:
    if shapes.sizes is not None:
        return f"{', '.join(f'{height}x{width}' for height, width in shapes.sizes)} in batches of {_range(shapes.batch)}"
    return f"height {_range(shapes.height)}, width {_range(shapes.width)} and batches of {_range(shapes.batch)}"


def _range(sizes: Range) -> str:
    if sizes.maximum is None:
        return f"{sizes.minimum} or more"
    return str(sizes.minimum) if sizes.minimum == sizes.maximum else f"{sizes.minimum} to {sizes.maximum}"


def _tensors(entries: tuple[TensorEntry, ...]) -> str:
    return ", ".join(f"{entry.name} {entry.dtype} {list(entry.shape)}" for entry in entries) or "none"
