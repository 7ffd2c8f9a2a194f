"""Run a plan of TensorRT or of TensorRT for RTX, without torch."""

import contextlib
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from ddcat.bundle import Bundle
from ddcat.choices import Precision
from ddcat.engines.base import CheckedEngine, Closable, Outputs
from ddcat.engines.checks import check_names
from ddcat.engines.errors import EngineError
from ddcat.engines.tensorrt.api import Api, Bindings, Log
from ddcat.engines.tensorrt.cuda import DeviceBuffer, Stream
from ddcat.engines.tensorrt.plan import Profile, check_in_effect, profile_for, profiles_of
from ddcat.manifest import TensorEntry

if TYPE_CHECKING:
    import tensorrt as trt

__all__ = ["TensorRtGraph", "load_plan", "tensor_entry"]

Shape = tuple[int, ...]


class TensorRtGraph(Closable):
    """
    A plan that is loaded: a `LoadedGraph`.

    Loading a plan runs native code: pass verified bytes only.

    Parameters
    ----------
    api : Api
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
        self,
        api: Api,
        content: bytes,
        profiles: tuple[Profile, ...],
        *,
        precision: Precision,
        cuda_graphs: bool,
        host_code: bool = False,
    ) -> None:
        self._api, self._log = api, Log(api.trt)
        self._runtime = api.trt.Runtime(self._log.logger)  # must outlive what it loads
        if host_code:
            self._runtime.engine_host_code_allowed = True
        engine = self._runtime.deserialize_cuda_engine(content)
        if engine is None:
            raise EngineError(f"{api.title} does not load the plan: {self._log.reason()}")
        self._engine: trt.ICudaEngine | None = engine
        tensors = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        ours = [name for name in tensors if engine.get_tensor_mode(name) == api.trt.TensorIOMode.INPUT]
        theirs = [name for name in tensors if engine.get_tensor_mode(name) == api.trt.TensorIOMode.OUTPUT]
        check_names(ours, theirs)
        self.inputs, self.outputs = (
            tuple(tensor_entry(api.trt, name, engine.get_tensor_dtype(name), engine.get_tensor_shape(name)) for name in names)
            for names in (ours, theirs)
        )
        if engine.num_optimization_profiles != len(profiles):
            raise EngineError(
                f"the plan has {engine.num_optimization_profiles} profiles of shapes where {len(profiles)} were to be built"
            )
        inspector = engine.create_engine_inspector()
        check_in_effect(inspector.get_engine_information(api.trt.LayerInformationFormat.JSON), precision)
        self._profiles, self._cuda_graphs = profiles, cuda_graphs
        self._stream = Stream()
        try:
            self._scratch = DeviceBuffer(api.memory_size(engine))  # for all contexts: no two of them work at a time
        except EngineError:
            self._stream.close()
            raise
        self._sessions: dict[int | Shape, _Session] = {}
        self.description: Mapping[str, str | int | bool] = {
            "runtime": api.runtime,
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
            context = self._api.create_context(self._engine, self._scratch.address, self._scratch.size)
            largest = images.shape if self._cuda_graphs else self._profiles[profile].most
            outputs = [entry.name for entry in self.outputs]
            self._sessions[key] = _Session(context, profile, largest, outputs, self._stream, self._failure)
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

    def _failure(self) -> EngineError:
        return EngineError(f"{self._api.title} failed: {self._log.reason()}")


def load_plan(api: Api, bundle: Bundle, *, host_code: bool = False) -> CheckedEngine:
    """Load the plan of a verified bundle that this machine can run; `host_code` as for `TensorRtGraph`."""
    entry = bundle.manifest.engine
    graph = TensorRtGraph(
        api,
        bundle.files[entry.file],
        profiles_of(bundle.manifest.shapes, bundle.manifest.preprocessing.channels),
        precision=entry.effective_precision,
        cuda_graphs=entry.options.get("cuda_graphs") is True,
        host_code=host_code,
    )
    return CheckedEngine(graph, bundle.manifest)


class _Session:
    """
    A context with the memory of its tensors, for shapes up to the largest.

    A CUDA graph holds the state of its context, so each recorded shape has a context of its own.
    """

    def __init__(
        self,
        context: "trt.IExecutionContext",
        profile: int,
        largest: Shape,
        outputs: list[str],
        stream: Stream,
        failure: Callable[[], EngineError],
    ) -> None:
        self._context, self._stream, self._failure = context, stream, failure
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
            raise self._failure()


def tensor_entry(module: Bindings, name: str, dtype: "trt.DataType", shape: "trt.Dims") -> TensorEntry:
    """
    Describe an input or output of a plan or a network.

    Raises
    ------
    EngineError
        Where its type is not that of an engine.
    """
    dtypes: dict[trt.DataType, Literal["uint8", "float32"]] = {module.DataType.UINT8: "uint8", module.DataType.FLOAT: "float32"}
    if dtype not in dtypes or dtypes[dtype] != _dtype(name):
        raise EngineError(f"{name} is {dtype.name} in the plan, expected {_dtype(name)}")
    return TensorEntry(name=name, dtype=dtypes[dtype], shape=tuple("?" if size < 0 else size for size in shape))


def _dtype(name: str) -> np.dtype[Any]:
    return np.dtype(np.uint8 if name in ("image", "labels") else np.float32)
