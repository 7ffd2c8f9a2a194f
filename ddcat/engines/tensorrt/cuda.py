"""The parts of CUDA that an engine needs: the device, memory, a stream, and graphs."""

import ctypes
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from cuda.bindings import runtime as cudart

from ddcat.engines.errors import EngineError

__all__ = ["DeviceBuffer", "Gpu", "Stream", "find_gpu"]


class Gpu(NamedTuple):
    """The GPU that CUDA chooses here."""

    name: str
    compute_capability: str
    driver: str  # the version of CUDA that its driver has


def find_gpu() -> Gpu:
    """
    Return the GPU that CUDA chooses.

    Raises
    ------
    EngineError
        Where CUDA can use no GPU.
    """
    error, count = cudart.cudaGetDeviceCount()
    driver = _value(cudart.cudaDriverGetVersion())
    if error == cudart.cudaError_t.cudaErrorInsufficientDriver and driver:
        raise EngineError(f"the driver of this GPU is too old: it has CUDA {_version(driver)}; install a newer driver")
    if error != cudart.cudaError_t.cudaSuccess or count == 0:
        reason = "" if error == cudart.cudaError_t.cudaSuccess else f" ({error.name})"
        raise EngineError(
            f"there is no GPU here that CUDA can use{reason}: TensorRT needs one of NVIDIA's, with its driver; engines ort and "
            "openvino run on a CPU"
        )
    properties = _value(cudart.cudaGetDeviceProperties(_value(cudart.cudaGetDevice())))
    return Gpu(
        properties.name.split(b"\0")[0].decode(),
        f"{properties.major}.{properties.minor}",
        f"CUDA {_version(driver)}",
    )


class DeviceBuffer:
    """
    Memory of the GPU, optionally with page-locked memory of the host of the same size.

    Parameters
    ----------
    size : int
        Bytes.
    host : bool
    """

    def __init__(self, size: int, *, host: bool = False) -> None:
        self.size = size
        self._host = None
        self.address: int = _value(cudart.cudaMalloc(max(size, 1)))
        if host:
            try:
                self._host = _value(cudart.cudaHostAlloc(max(size, 1), cudart.cudaHostAllocDefault))
            except EngineError:
                cudart.cudaFree(self.address)
                raise
            self.bytes: npt.NDArray[np.uint8] = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(self._host))

    def upload(self, size: int, stream: "Stream") -> None:
        """Copy the first bytes from the host's side to the GPU's."""
        kind = cudart.cudaMemcpyKind.cudaMemcpyHostToDevice
        _check(cudart.cudaMemcpyAsync(self.address, self._host, size, kind, stream.handle))

    def download(self, size: int, stream: "Stream") -> None:
        """Copy the first bytes from the GPU's side to the host's."""
        kind = cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost
        _check(cudart.cudaMemcpyAsync(self._host, self.address, size, kind, stream.handle))

    def free(self) -> None:
        """Free the memory."""
        _check(cudart.cudaFree(self.address))
        if self._host is not None:
            _check(cudart.cudaFreeHost(self._host))


class Stream:
    """A queue of work for the GPU."""

    def __init__(self) -> None:
        self._stream = _value(cudart.cudaStreamCreateWithFlags(cudart.cudaStreamNonBlocking))
        self.handle = int(self._stream)

    def wait(self) -> None:
        """Wait until all work is done."""
        _check(cudart.cudaStreamSynchronize(self._stream))

    def capture(self, work: Callable[[], None]) -> Any:
        """
        Record work as a graph, without doing it.

        Parameters
        ----------
        work : callable
            Enqueues the work on this stream. It must have been called before, because its first call may allocate.
        """
        _check(cudart.cudaStreamBeginCapture(self._stream, cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal))
        try:
            work()
        except EngineError:
            cudart.cudaStreamEndCapture(self._stream)  # a stream that is left capturing does nothing else ever
            raise
        graph = _value(cudart.cudaStreamEndCapture(self._stream))
        try:
            return _value(cudart.cudaGraphInstantiate(graph, 0))
        finally:
            _check(cudart.cudaGraphDestroy(graph))

    def launch(self, graph: Any) -> None:
        """Launch a graph of `capture`."""
        _check(cudart.cudaGraphLaunch(graph, self._stream))

    def destroy_graph(self, graph: Any) -> None:
        """Free a graph of `capture`."""
        _check(cudart.cudaGraphExecDestroy(graph))

    def close(self) -> None:
        """Free the stream."""
        _check(cudart.cudaStreamDestroy(self._stream))


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


def _check(result: tuple[Any, ...]) -> None:
    if result[0] != cudart.cudaError_t.cudaSuccess:
        raise EngineError(f"CUDA failed: {result[0].name}")


def _value(result: tuple[Any, ...]) -> Any:
    _check(result)
    return result[1]
