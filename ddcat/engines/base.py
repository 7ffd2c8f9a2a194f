"""What every engine is, whatever its runtime."""

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


class _Loaded(Protocol):
    @property
    def inputs(self) -> tuple[TensorEntry, ...]:
        """Inputs of the graph, as the runtime itself states them."""

    @property
    def outputs(self) -> tuple[TensorEntry, ...]:
        """Outputs of the graph, as the runtime itself states them."""

    @property
    def description(self) -> Mapping[str, str | int | bool]:
        """Runtime, provider, precision, threads and whatever else a measurement depends on."""

    def rest(self) -> None:
        """
        Give back the memory that is kept for further calls; the next one will be a little slower.

        Raises
        ------
        EngineError
            Where the runtime fails.
        """

    def close(self) -> None:
        """Give the runtime's memory back; nothing can be done after it."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...


class LoadedGraph(_Loaded, Protocol):
    """A graph that is loaded and ready to run, before anything is known about the sizes that it takes."""

    def run(self, images: npt.NDArray[Any]) -> Outputs:
        """
        Run the graph on whatever it is given, which should be (N, H, W, 3) uint8.

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
        images : (N, H, W, 3) uint8
            RGB.

        Raises
        ------
        InputError
            Where the type, rank or size is not one that the bundle was checked with.
        EngineError
            Where the runtime fails.
        """


class Closable(abc.ABC):
    """Is closed at the end of a with block."""

    @abc.abstractmethod
    def close(self) -> None:
        """Give memory back."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()


class CheckedEngine(Closable):
    """
    A graph together with the sizes that its bundle was checked with: an `Engine`.

    Parameters
    ----------
    graph : Graph
        Is closed with the engine, or at once where it is refused.
    manifest : Manifest
        Of the bundle that it is from.

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
        self._graph, self._shapes = graph, manifest.shapes
        self.inputs, self.outputs, self.description = graph.inputs, graph.outputs, graph.description

    def infer(self, images: Images) -> Outputs:
        """Segment a batch: see `Engine.infer`."""
        check_images(images, self._shapes)
        outputs = self._graph.run(images)
        if outputs.labels.shape != images.shape[:3] or outputs.labels.dtype != np.uint8:
            raise EngineError(f"labels {outputs.labels.dtype} {outputs.labels.shape} came back for images {images.shape}")
        return outputs

    def rest(self) -> None:
        """Give back the memory that is kept for further calls: see `Engine.rest`."""
        self._graph.rest()

    def close(self) -> None:
        """Close the graph."""
        self._graph.close()


def smallest_batch(shapes: InputShapes) -> Images:
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
