"""The interface of all engines, whatever their runtime."""

import abc
import contextlib
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt

from ddcat.engines.checks import check_declared_io, check_images
from ddcat.engines.errors import EngineError
from ddcat.manifest import InputShapes, Manifest, TensorEntry

__all__ = [
    "CheckedEngine",
    "Closable",
    "Engine",
    "Images",
    "LoadedGraph",
    "Outputs",
    "memory_file",
    "smallest_batch",
]

if sys.platform != "win32":
    import fcntl

Images = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Outputs:
    """
    The outputs of an engine for a batch.

    Attributes
    ----------
    labels : (N, H, W) uint8
        Class of each pixel, in 0..K-1.
    logits : (N, K, h, w) float32, or None
        At the resolution at which the network computes them; None where the graph does not output them.
    confidence : (N, H, W) float32, or None
        Probability of each pixel's label, in [0, 1]: its softmax; None where the graph does not output it.
    """

    labels: npt.NDArray[np.uint8]
    logits: npt.NDArray[np.float32] | None = None
    confidence: npt.NDArray[np.float32] | None = None

    def of(self, images: slice) -> "Outputs":
        """Return the outputs of some images of the batch."""
        given = {name: values[images] for name, values in vars(self).items() if values is not None}
        return Outputs(**given)


class _Loaded(Protocol):
    @property
    def inputs(self) -> tuple[TensorEntry, ...]:
        """Inputs of the graph, as the runtime itself states them."""

    @property
    def outputs(self) -> tuple[TensorEntry, ...]:
        """Outputs of the graph, as the runtime itself states them."""

    @property
    def description(self) -> Mapping[str, str | int | bool]:
        """Runtime, provider, precision, threads and other settings that a measurement depends on."""

    def rest(self) -> None:
        """
        Free the memory that is kept for further calls; the next call will be a little slower.

        Raises
        ------
        EngineError
            Where the runtime fails.
        """

    def close(self) -> None:
        """Free the runtime's memory. The engine cannot be used afterwards."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...


class LoadedGraph(_Loaded, Protocol):
    """A graph that is loaded and ready to run, without a check of sizes."""

    def run(self, images: npt.NDArray[Any]) -> Outputs:
        """
        Run the graph on images, which should be (N, H, W, C) uint8.

        Raises
        ------
        EngineError
            Where the runtime refuses or fails.
        """


class Engine(_Loaded, Protocol):
    """A graph that is loaded and ready to run."""

    def infer(self, images: Images) -> Outputs:
        """
        Segment a batch.

        Parameters
        ----------
        images : (N, H, W, C) uint8
            RGB, or the bands of the manifest.

        Raises
        ------
        InputError
            Where the engine does not take the type, rank or size.
        EngineError
            Where the runtime fails.
        """


class Closable(abc.ABC):
    """An object that is closed at the end of a with block."""

    @abc.abstractmethod
    def close(self) -> None:
        """Free the memory."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()


class CheckedEngine(Closable):
    """
    A graph that checks images against the sizes of its bundle: an `Engine`.

    Parameters
    ----------
    graph : Graph
        Closed with the engine, or at once where it is refused.
    manifest : Manifest
        Manifest of its bundle.

    Raises
    ------
    EngineError
        Where the graph is not what the manifest says.
    """

    def __init__(self, graph: LoadedGraph, manifest: Manifest) -> None:
        try:
            check_declared_io(graph.inputs, graph.outputs, manifest)
        except EngineError:
            graph.close()
            raise
        self._graph, self._manifest = graph, manifest
        self.inputs, self.outputs, self.description = graph.inputs, graph.outputs, graph.description

    def infer(self, images: Images) -> Outputs:
        """Segment a batch: see `Engine.infer`."""
        check_images(images, self._manifest.shapes, self._manifest.preprocessing.channels)
        outputs = self._graph.run(images)
        if outputs.labels.shape != images.shape[:3] or outputs.labels.dtype != np.uint8:
            raise EngineError(f"labels {outputs.labels.dtype} {outputs.labels.shape} came back for images {images.shape}")
        return outputs

    def rest(self) -> None:
        """Free the memory that is kept for further calls: see `Engine.rest`."""
        self._graph.rest()

    def close(self) -> None:
        """Close the graph."""
        self._graph.close()


def smallest_batch(shapes: InputShapes, channels: int = 3) -> Images:
    """Return black images of the smallest batch and size that an engine takes."""
    height, width = shapes.sizes[0] if shapes.sizes is not None else (shapes.height.minimum, shapes.width.minimum)
    return np.zeros((shapes.batch.minimum, height, width, channels), np.uint8)


@contextlib.contextmanager
def memory_file(content: bytes) -> Iterator[str | bytes]:
    """
    Yield the path of a sealed file in memory that holds verified bytes.

    A runtime reads it like any other file. Given the bytes themselves, it would make and keep copies.

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
