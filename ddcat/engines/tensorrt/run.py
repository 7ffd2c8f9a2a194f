"""Run a TensorRT plan, without torch."""

import contextlib
import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import tensorrt as trt

from ddcat.bundle import Bundle
from ddcat.engines.base import CheckedEngine, Closable, Outputs
from ddcat.engines.checks import check_names
from ddcat.engines.errors import EngineError
from ddcat.engines.tensorrt.compat import api
from ddcat.engines.tensorrt.cuda import DeviceBuffer, Stream, find_gpu
from ddcat.engines.tensorrt.plan import Profile, check_in_effect, check_runs_here, profile_for, profiles_of
from ddcat.manifest import Device, Precision, TensorEntry

__all__ = ["Log", "TensorRtGraph", "load", "this_device"]

Shape = tuple[int, ...]


class Log(trt.ILogger):  # type: ignore[misc]
    """Keep TensorRT's errors, for the one line of a refusal."""

    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self.complaints: list[str] = []

    def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
        """Record a message."""
        if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
            self.complaints.append(msg.strip().partition("\n")[0])

    def reason(self) -> str:
        """Return the first error: later ones are most often its consequence."""
        return self.complaints[0] if self.complaints else "it does not say why"


class TensorRtGraph(Closable):
    """
    A plan that is loaded: a `LoadedGraph`.

    Loading a plan runs native code: pass verified bytes only.

    Parameters
    ----------
    content : bytes
        A plan.
    profiles : tuple of Profile
        Profiles that it was built with.
    precision : Precision
    cuda_graphs : bool
        Record the work of each shape once, and launch it as a whole afterwards: for plans of few shapes.
    host_code : bool
        Allow the plan to bring code for the CPU, as version-compatible plans do.

    Raises
    ------
    EngineError
        Where TensorRT does not load it, or its layers do not compute in the precision.
    """

    def __init__(
        self, content: bytes, profiles: tuple[Profile, ...], *, precision: Precision, cuda_graphs: bool, host_code: bool = False
    ) -> None:
        self._log = Log()
        self._runtime = trt.Runtime(self._log)  # must outlive what it loads
        if host_code:
            self._runtime.engine_host_code_allowed = True
        engine = self._runtime.deserialize_cuda_engine(content)
        if engine is None:
            raise EngineError(f"TensorRT {trt.__version__} does not load the plan: {self._log.reason()}")
        self._engine: trt.ICudaEngine | None = engine
        tensors = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        ours = [name for name in tensors if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        theirs = [name for name in tensors if engine.get_tensor_mode(name) == trt.TensorIOMode.OUTPUT]
        check_names(ours, theirs)
        self.inputs = tuple(_entry(engine, name) for name in ours)
        self.outputs = tuple(_entry(engine, name) for name in theirs)
        if engine.num_optimization_profiles != len(profiles):
            raise EngineError(
                f"the plan has {engine.num_optimization_profiles} profiles of shapes where {len(profiles)} were to be built"
            )
        inspector = engine.create_engine_inspector()
        check_in_effect(inspector.get_engine_information(trt.LayerInformationFormat.JSON), precision)
        self._profiles, self._cuda_graphs = profiles, cuda_graphs
        self._stream = Stream()
        try:
            self._scratch = DeviceBuffer(api.memory_size(engine))  # for all contexts: no two of them work at a time
        except EngineError:
            self._stream.close()
            raise
        self._sessions: dict[int | Shape, _Session] = {}
        self.description: Mapping[str, str | int | bool] = {
            "runtime": f"tensorrt {trt.__version__}",
            "provider": "TensorRT",
            "precision": precision,
            "tf32": False,
            "cuda_graphs": cuda_graphs,
            "profiles": len(profiles),
        }

    def run(self, images: npt.NDArray[Any]) -> Outputs:
        """Run the plan: see `LoadedGraph.run`."""
        if self._engine is None:
            raise EngineError("the engine is closed")
        if images.dtype != np.uint8:
            raise EngineError(f"TensorRT failed on images of {images.dtype}: use uint8")
        profile = profile_for(self._profiles, images.shape)
        key = images.shape if self._cuda_graphs else profile
        if key not in self._sessions:
            context = api.create_context(self._engine, self._scratch.address, self._scratch.size)
            largest = images.shape if self._cuda_graphs else self._profiles[profile].most
            self._sessions[key] = _Session(context, profile, largest, [e.name for e in self.outputs], self._stream, self._log)
        return self._sessions[key].run(images, record=self._cuda_graphs)

    def rest(self) -> None:
        """Keep everything: its memory is for the largest images, and was allocated when a profile or a shape was first used."""

    def close(self) -> None:
        """Free the plan and its memory."""
        if self._engine is None:
            return
        for session in self._sessions.values():
            session.close()
        self._sessions.clear()
        self._engine = None
        self._scratch.free()
        self._stream.close()


def load(bundle: Bundle, *, threads: int | None = None) -> CheckedEngine:
    """Load a verified bundle: see `ddcat.engines.open_engine`. A GPU has no threads to set."""
    entry = bundle.manifest.engine
    if entry.built_for is None:
        raise EngineError(f"the manifest of {bundle.manifest.name} does not say what GPU its plan is for: export again")
    options = entry.options
    compatible, hardware = options.get("version_compatible") is True, str(options.get("hardware", "this"))
    check_runs_here(entry.built_for, this_device(), version_compatible=compatible, hardware=hardware)
    graph = TensorRtGraph(
        bundle.files[entry.file],
        profiles_of(bundle.manifest.shapes),
        precision=entry.effective_precision,
        cuda_graphs=options.get("cuda_graphs") is True,
        host_code=compatible,
    )
    return CheckedEngine(graph, bundle.manifest)


def this_device() -> Device:
    """
    Describe the GPU of this machine and the TensorRT that is installed.

    Raises
    ------
    EngineError
        Where there is no GPU that CUDA can use.
    """
    gpu = find_gpu()
    return Device(
        name=gpu.name,
        compute_capability=gpu.compute_capability,
        driver=gpu.driver,
        runtime=f"tensorrt {trt.__version__}",
    )


class _Session:
    """
    A context with the memory of its tensors, for shapes up to the largest.

    A CUDA graph holds the state of its context, so each recorded shape has a context of its own.
    """

    def __init__(
        self, context: trt.IExecutionContext, profile: int, largest: Shape, outputs: list[str], stream: Stream, log: Log
    ) -> None:
        self._context, self._stream, self._log = context, stream, log
        self._done(context.set_optimization_profile_async(profile, stream.handle))
        stream.wait()
        self._shape: Shape = ()
        self._set_shape(largest)
        self._graph: Any = None
        with contextlib.ExitStack() as allocated:  # of a session that does not come about nothing stays
            sizes = {"image": math.prod(largest), **{name: self._size(name) for name in outputs}}
            tensors = {}
            for name, size in sizes.items():
                tensors[name] = DeviceBuffer(size, host=True)
                allocated.callback(tensors[name].free)
                self._done(context.set_tensor_address(name, tensors[name].address))
            self._allocated = allocated.pop_all()
        self._image = tensors.pop("image")
        self._outputs = tensors

    def run(self, images: npt.NDArray[np.uint8], *, record: bool) -> Outputs:
        """Run the plan on images of a shape that this context has memory for."""
        self._set_shape(images.shape)
        self._image.bytes[: images.size] = np.ascontiguousarray(images).reshape(-1)
        self._image.upload(images.size, self._stream)
        if self._graph is not None:
            self._stream.launch(self._graph)
        else:
            self._execute()
        for name, memory in self._outputs.items():
            memory.download(self._size(name), self._stream)
        self._stream.wait()
        if record and self._graph is None:  # after the first run: that one may still allocate
            self._graph = self._stream.capture(self._execute)
        return Outputs(**{name: self._array(name) for name in self._outputs})

    def close(self) -> None:
        """Free its memory."""
        if self._graph is not None:
            self._stream.destroy_graph(self._graph)
        self._allocated.close()

    def _set_shape(self, shape: Shape) -> None:
        if shape != self._shape:
            self._done(self._context.set_input_shape("image", shape))
            self._shape = shape

    def _execute(self) -> None:
        self._done(self._context.execute_async_v3(self._stream.handle))

    def _size(self, name: str) -> int:
        size: int = math.prod(self._context.get_tensor_shape(name)) * _dtype(name).itemsize
        return size

    def _array(self, name: str) -> npt.NDArray[Any]:
        content = self._outputs[name].bytes[: self._size(name)].copy()
        return content.view(_dtype(name)).reshape(tuple(self._context.get_tensor_shape(name)))

    def _done(self, worked: bool) -> None:
        if not worked:
            raise EngineError(f"TensorRT {trt.__version__} failed: {self._log.reason()}")


def _entry(engine: trt.ICudaEngine, name: str) -> TensorEntry:
    dtypes: dict[trt.DataType, Literal["uint8", "float32"]] = {trt.DataType.UINT8: "uint8", trt.DataType.FLOAT: "float32"}
    dtype = engine.get_tensor_dtype(name)
    if dtype not in dtypes or dtypes[dtype] != _dtype(name):
        raise EngineError(f"{name} is {dtype.name} in the plan, expected {_dtype(name)}")
    shape = tuple("?" if size < 0 else size for size in engine.get_tensor_shape(name))
    return TensorEntry(name=name, dtype=dtypes[dtype], shape=shape)


def _dtype(name: str) -> np.dtype[Any]:
    return np.dtype(np.uint8 if name in ("image", "labels") else np.float32)
