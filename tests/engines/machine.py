"""
A machine with a GPU and TensorRT that records what is asked of it: doubles of `tensorrt`, `tensorrt_rtx` and
`cuda.bindings.runtime`.

A plan of it holds the graph, which ONNX Runtime computes on the CPU when the plan is executed, so that what comes back can be
compared with an oracle. Whatever a stream is given is done when somebody waits for it, and not before; what is recorded as a
graph is done when that is launched; each copy must lie within memory that was allocated and not freed.
"""

import ctypes
import enum
import json
import pickle
import sys
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

import ddcat.engines.tensorrt
import ddcat_export.engines.tensorrt

FLAGS = {
    8: ("FP16", "INT8", "TF32", "VERSION_COMPATIBLE"),
    10: ("FP16", "INT8", "BF16", "TF32", "VERSION_COMPATIBLE", "EDITABLE_TIMING_CACHE", "ERROR_ON_TIMING_CACHE_MISS",
         "DISABLE_COMPILATION_CACHE"),
    11: ("TF32", "VERSION_COMPATIBLE", "EDITABLE_TIMING_CACHE", "ERROR_ON_TIMING_CACHE_MISS", "DISABLE_COMPILATION_CACHE"),
}  # fmt: skip
CREATION = {8: ("EXPLICIT_BATCH",), 10: ("STRONGLY_TYPED",), 11: ("STRONGLY_TYPED",)}
LEVELS = {8: ("NONE", "AMPERE_PLUS"), 10: ("NONE", "AMPERE_PLUS", "SAME_COMPUTE_CAPABILITY")}
HALF = {onnx.TensorProto.FLOAT16: "Half", onnx.TensorProto.BFLOAT16: "BFloat16"}


class Machine:
    """What the machine is, what it was asked for, and what it is to fail at."""

    def __init__(self, version: str = "10.13.2.6") -> None:
        self.version, self.major = version, int(version.partition(".")[0])
        self.gpus, self.name, self.capability, self.driver = 1, "NVIDIA H100 80GB HBM3", (9, 0), 13000
        self.calls: list[tuple[Any, ...]] = []
        self.fails: set[str] = set()
        self.driver_too_old = False
        self.types: str | None = None  # that the inspector tells, instead of the graph's
        self.memory: dict[int, tuple[ctypes.Array[Any], bool]] = {}
        self.pending: list[Callable[[], None]] = []
        self.captured: list[Callable[[], None]] | None = None

    def told(self, name: str) -> list[tuple[Any, ...]]:
        """All calls of a name, without it."""
        return [call[1:] for call in self.calls if call[0] == name]

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let this machine be what the modules of TensorRT's engine import; `forget_engine` must be called before and after."""
        runtime = cudart_of(self)
        package, bindings = types.ModuleType("cuda"), types.ModuleType("cuda.bindings")
        bindings.runtime = runtime  # type: ignore[attr-defined]
        modules = {
            "tensorrt": tensorrt_of(self), "tensorrt_rtx": tensorrt_rtx_of(self), "cuda": package, "cuda.bindings": bindings,
            "cuda.bindings.runtime": runtime,
        }  # fmt: skip
        for name, module in modules.items():
            monkeypatch.setitem(sys.modules, name, module)

    def allocate(self, size: int, host: bool) -> int:
        block = (ctypes.c_uint8 * size)()
        address = ctypes.addressof(block)
        self.memory[address] = (block, host)
        return address

    def check(self, address: int, size: int, *, host: bool) -> None:
        block, is_host = self.memory[address]
        assert is_host is host, "an address of the other side"
        assert size <= len(block), f"{size} bytes of memory for {len(block)}"

    def do(self, work: Callable[[], None]) -> None:
        (self.pending if self.captured is None else self.captured).append(work)


def forget_engine() -> None:
    """Let the modules of TensorRT's engine be imported anew."""
    ours = ("cuda", "run", "trt", "trt_rtx")
    for package, names in ((ddcat.engines.tensorrt, ours), (ddcat_export.engines.tensorrt, ("plan_builder", "trt", "trt_rtx"))):
        for name in names:
            sys.modules.pop(f"{package.__name__}.{name}", None)
            vars(package).pop(name, None)


def enumeration(name: str, members: tuple[str, ...]) -> Any:
    return enum.IntEnum(name, members, start=0)


def cudart_of(machine: Machine) -> Any:
    module: Any = types.ModuleType("cuda.bindings.runtime")
    names = ("cudaSuccess", "cudaErrorNoDevice", "cudaErrorInsufficientDriver", "cudaErrorStreamCaptureUnsupported")
    errors = enum.Enum("cudaError_t", names)
    good, kinds = errors["cudaSuccess"], enumeration("cudaMemcpyKind", ("cudaMemcpyHostToDevice", "cudaMemcpyDeviceToHost"))
    module.cudaError_t, module.cudaMemcpyKind = errors, kinds
    module.cudaStreamCaptureMode = enumeration("cudaStreamCaptureMode", ("cudaStreamCaptureModeThreadLocal",))
    module.cudaHostAllocDefault, module.cudaStreamNonBlocking = 0, 1
    old, none = errors["cudaErrorInsufficientDriver"], errors["cudaErrorNoDevice"]
    module.cudaGetDeviceCount = lambda: (old if machine.driver_too_old else good if machine.gpus else none, machine.gpus)
    module.cudaGetDevice = lambda: (good, 0)
    module.cudaGetDeviceProperties = lambda device: (
        good,
        types.SimpleNamespace(
            name=machine.name.encode() + b"\0\0", **dict(zip(("major", "minor"), machine.capability, strict=True))
        ),
    )
    module.cudaDriverGetVersion = lambda: (good, machine.driver)

    def call(name: str, act: Callable[..., Any] = lambda *arguments: None) -> None:
        def called(*arguments: Any) -> tuple[Any, ...]:
            machine.calls.append((name, *arguments))
            if name in machine.fails:
                return (errors["cudaErrorStreamCaptureUnsupported"], None)
            return (good, act(*arguments))

        setattr(module, name, called)

    def copy(to: int, source: int, size: int, kind: int, stream: int) -> None:
        upload = kind == kinds.cudaMemcpyHostToDevice
        machine.check(to, size, host=not upload)
        machine.check(source, size, host=upload)
        machine.do(lambda: ctypes.memmove(to, source, size) and None)

    def wait(stream: Any) -> None:
        assert machine.captured is None, "a wait within a capture"
        for work in machine.pending:
            work()
        machine.pending.clear()

    def begin(stream: Any, mode: int) -> None:
        assert not machine.pending, "a capture behind work that is not done"
        machine.captured = []

    def end(stream: Any) -> Any:
        captured, machine.captured = machine.captured, None
        return captured

    call("cudaMalloc", lambda size: machine.allocate(size, host=False))
    call("cudaHostAlloc", lambda size, flags: machine.allocate(size, host=True))
    for name in ("cudaFree", "cudaFreeHost"):
        call(name, machine.memory.pop)
    call("cudaMemcpyAsync", copy)
    call("cudaStreamCreateWithFlags", lambda flags: 77)
    call("cudaStreamSynchronize", wait)
    call("cudaStreamBeginCapture", begin)
    call("cudaStreamEndCapture", end)
    call("cudaGraphInstantiate", lambda graph, flags: graph)
    call("cudaGraphLaunch", lambda graph, stream: machine.pending.extend(graph))
    for name in ("cudaGraphDestroy", "cudaGraphExecDestroy", "cudaStreamDestroy"):
        call(name)
    return module


def tensorrt_of(machine: Machine) -> Any:
    trt: Any = types.ModuleType("tensorrt")
    major = machine.major
    trt.__version__ = machine.version
    trt.BuilderFlag = enumeration("BuilderFlag", FLAGS[major])
    trt.NetworkDefinitionCreationFlag = enumeration("NetworkDefinitionCreationFlag", CREATION[major])
    trt.HardwareCompatibilityLevel = enumeration("HardwareCompatibilityLevel", LEVELS.get(major, LEVELS[10]))
    trt.ProfilingVerbosity = enumeration("ProfilingVerbosity", ("LAYER_NAMES_ONLY", "DETAILED"))
    trt.LayerInformationFormat = enumeration("LayerInformationFormat", ("ONELINE", "JSON"))
    trt.TensorIOMode = enumeration("TensorIOMode", ("NONE", "INPUT", "OUTPUT"))
    trt.DataType = enumeration("DataType", ("FLOAT", "HALF", "UINT8"))
    trt.ExecutionContextAllocationStrategy = enumeration("ExecutionContextAllocationStrategy", ("STATIC", "USER_MANAGED"))

    class ILogger:
        Severity = enumeration("Severity", ("INTERNAL_ERROR", "ERROR", "WARNING"))
        INTERNAL_ERROR, ERROR, WARNING = Severity

    def failing(what: str, log: Any) -> bool:
        if what in machine.fails:
            log.log(ILogger.WARNING, "a warning that tells nothing")
            log.log(ILogger.ERROR, f"reason of {what}\nand pages more")
        return what in machine.fails

    class Profile:
        def set_shape(self, name: str, *, min: Any, opt: Any, max: Any) -> None:  # noqa: A002 - TensorRT's names
            machine.calls.append(("set_shape", name, min, opt, max))
            self.shapes = (min, opt, max)

    class Config:
        def __init__(self) -> None:
            self.flags, self.profiles = {"TF32"}, []  # as TensorRT begins
            self.hardware_compatibility_level = trt.HardwareCompatibilityLevel.NONE
            self.set_flag, self.clear_flag = (lambda f: self.flags.add(f.name)), (lambda f: self.flags.discard(f.name))

        def set_compute_capability(self, capability: Any, index: int) -> bool:
            assert index < self.num_compute_capabilities
            machine.calls.append(("compute_capability", capability.name))
            return True

        def create_timing_cache(self, content: bytes) -> Any:
            return types.SimpleNamespace(content=content, serialize=lambda: content or b"timings of this machine")

        def set_timing_cache(self, cache: Any, *, ignore_mismatch: bool) -> bool:
            machine.calls.append(("set_timing_cache", cache.content, ignore_mismatch))
            return not cache.content.startswith(b"foreign")

        def add_optimization_profile(self, profile: Profile) -> int:
            self.profiles.append(profile.shapes)
            return -1 if "profile" in machine.fails else len(self.profiles) - 1

    class Builder:
        create_builder_config, create_optimization_profile = Config, Profile

        def __init__(self, log: Any) -> None:
            self.log = log

        def create_network(self, flags: int) -> Any:
            machine.calls.append(("create_network", flags))
            return Network()

        def build_serialized_network(self, network: Any, config: Any) -> bytes | None:
            names = sorted(config.flags)
            machine.calls.append(
                ("build", names, config.hardware_compatibility_level.name, config.profiling_verbosity.name, config.profiles)
            )
            if failing("build", self.log):
                return None
            return b"PLAN" + pickle.dumps((network.graph, config.profiles, "VERSION_COMPATIBLE" in names))

    class Network:
        num_layers = 1

        def __getattr__(self, name: str) -> Any:
            values = {"input": self.model.graph.input, "output": self.model.graph.output}[name.split("_")[1].rstrip("s")]
            if name.startswith("num_"):
                return len(values)
            return lambda index: types.SimpleNamespace(
                name=values[index].name,
                dtype=dtype_of(values[index].type.tensor_type),
                shape=shape_of(values[index].type.tensor_type),
            )

    def dtype_of(tensor: Any) -> Any:
        return trt.DataType.UINT8 if tensor.elem_type == onnx.TensorProto.UINT8 else trt.DataType.FLOAT

    def shape_of(tensor: Any) -> tuple[int, ...]:
        return tuple(-1 if dim.dim_param else dim.dim_value for dim in tensor.shape.dim)

    class Parser:
        num_errors = 0

        def __init__(self, network: Any, log: Any) -> None:
            self.network, self.log = network, log

        def parse(self, graph: bytes) -> bool:
            self.network.graph, self.network.model = graph, onnx.load_model_from_string(graph)
            machine.calls.append(("parse", graph))
            self.num_errors = int("parser" in machine.fails)
            return not failing("parse", self.log) and not self.num_errors

        def get_error(self, index: int) -> Any:
            return types.SimpleNamespace(
                desc=lambda: "reason of the parser", node_name=lambda: "n1", node_operator=lambda: "Conv"
            )

    class Runtime:
        engine_host_code_allowed = False

        def __init__(self, log: Any) -> None:
            self.log = log

        def get_engine_validity(self, content: bytes) -> tuple[Any, int]:
            names = [name for name in trt.EngineInvalidityDiagnostics.__members__ if name in machine.fails]
            told = sum(trt.EngineInvalidityDiagnostics[name] for name in names)
            return trt.EngineValidity.INVALID if told else trt.EngineValidity.VALID, told

        def deserialize_cuda_engine(self, content: bytes) -> Any:
            machine.calls.append(("deserialize", self.engine_host_code_allowed))
            if failing("deserialize", self.log) or not content.startswith(b"PLAN"):
                return None
            graph, profiles, compatible = pickle.loads(content[4:])
            assert self.engine_host_code_allowed is compatible
            return Engine(graph, profiles)

    class Engine:
        def __init__(self, graph: bytes, profiles: Any) -> None:
            self.model, self.profiles = onnx.load_model_from_string(graph), profiles
            self.session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
            self.tensors = {value.name: value.type.tensor_type for value in (*self.model.graph.input, *self.model.graph.output)}
            self.num_io_tensors, self.num_optimization_profiles = len(self.tensors), len(profiles)
            setattr(self, "device_memory_size" if major == 8 else "device_memory_size_v2", 4096)
            if major == 8:
                self.create_execution_context_without_device_memory = lambda: Context(self)
            else:
                self.create_execution_context = self._create

        def _create(self, strategy: Any) -> Any:
            assert getattr(strategy, "strategy", strategy) == trt.ExecutionContextAllocationStrategy.USER_MANAGED
            return Context(self)

        def create_runtime_config(self) -> Any:
            settings = types.SimpleNamespace()
            settings.set_execution_context_allocation_strategy = lambda strategy: vars(settings).update(strategy=strategy)
            machine.calls.append(("runtime_config", settings))
            return settings

        def get_tensor_name(self, index: int) -> str:
            return list(self.tensors)[index]

        def get_tensor_mode(self, name: str) -> Any:
            return trt.TensorIOMode.INPUT if name == "image" else trt.TensorIOMode.OUTPUT

        def get_tensor_dtype(self, name: str) -> Any:
            return dtype_of(self.tensors[name])

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            return shape_of(self.tensors[name])

        def create_engine_inspector(self) -> Any:
            return types.SimpleNamespace(get_engine_information=self._information)

        def _information(self, form: Any) -> str:
            assert form == trt.LayerInformationFormat.JSON
            halves = [HALF[tensor.data_type] for tensor in self.model.graph.initializer if tensor.data_type in HALF]
            quantised = any(node.op_type == "QuantizeLinear" for node in self.model.graph.node)
            kind = machine.types or ("Int8" if quantised else halves[0] if halves else "Float")
            key = "DataType" if major == 11 else "Format/Datatype"
            return json.dumps({"Layers": [{"Name": "conv", "Outputs": [{"Name": "y", key: kind}]}]})

    class Context:
        def __init__(self, engine: Engine) -> None:
            machine.calls.append(("create_context",))
            self.engine, self.addresses, self.shape = engine, {}, ()

        def __setattr__(self, name: str, value: Any) -> None:
            if name == "device_memory":
                self.set_device_memory(value, 4096)
            object.__setattr__(self, name, value)

        def set_device_memory(self, address: int, size: int) -> None:
            machine.check(address, size, host=False)
            machine.calls.append(("scratch", address))

        def set_optimization_profile_async(self, index: int, stream: int) -> bool:
            machine.calls.append(("set_profile", index, stream))
            self.profile = index
            return True

        def set_input_shape(self, name: str, shape: Any) -> bool:
            machine.calls.append(("set_input_shape", name, tuple(shape)))
            least, _, most = self.engine.profiles[self.profile]
            self.shape = tuple(shape)
            return all(low <= size <= high for low, size, high in zip(least, shape, most, strict=True))

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            axes = dict(zip(("batch", "height", "width"), self.shape, strict=False))
            return tuple(axes.get(dim.dim_param, dim.dim_value) for dim in self.engine.tensors[name].shape.dim)

        def set_tensor_address(self, name: str, address: int) -> bool:
            self.addresses[name] = address
            return "set_tensor_address" not in machine.fails

        def execute_async_v3(self, stream: int) -> bool:
            assert stream == 77
            machine.calls.append(("execute", self.shape))
            shape = self.shape
            machine.do(lambda: self._compute(shape))
            return "execute" not in machine.fails

        def _compute(self, shape: tuple[int, ...]) -> None:
            assert shape == self.shape, "the context has another shape by now: what was recorded for this one is void"
            size = int(np.prod(shape))
            machine.check(self.addresses["image"], size, host=False)
            images = np.frombuffer(ctypes.string_at(self.addresses["image"], size), np.uint8).reshape(shape)
            names = [name for name in self.engine.tensors if name != "image"]
            for name, value in zip(names, self.engine.session.run(names, {"image": images}), strict=True):
                assert value.shape == self.get_tensor_shape(name)
                machine.check(self.addresses[name], value.nbytes, host=False)
                ctypes.memmove(self.addresses[name], value.tobytes(), value.nbytes)

    trt.ILogger, trt.Builder, trt.OnnxParser, trt.Runtime = ILogger, Builder, Parser, Runtime
    return trt


def tensorrt_rtx_of(machine: Machine) -> Any:
    rtx = tensorrt_of(machine)
    rtx.__version__ = "1.7.1.116"
    rtx.ComputeCapability = enumeration(
        "ComputeCapability", ("NONE", "CURRENT", "SM75", "SM80", "SM86", "SM89", "SM120", "SM121")
    )
    rtx.EngineValidity = enumeration("EngineValidity", ("VALID", "SUBOPTIMAL", "INVALID"))
    faults = ("VERSION_MISMATCH", "UNSUPPORTED_CC", "OLD_CUDA_DRIVER", "OLD_CUDA_RUNTIME", "INSUFFICIENT_GPU_MEMORY",
              "MALFORMED_ENGINE", "CUDA_ERROR")  # fmt: skip
    rtx.EngineInvalidityDiagnostics = enum.IntEnum(
        "EngineInvalidityDiagnostics", {name: 1 << i for i, name in enumerate(faults)}
    )
    strategies = ("LAZY", "EAGER", "NONE")
    rtx.DynamicShapesKernelSpecializationStrategy = enumeration("DynamicShapesKernelSpecializationStrategy", strategies)
    return rtx
