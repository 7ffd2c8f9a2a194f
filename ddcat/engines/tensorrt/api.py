"""TensorRT's Python modules: `tensorrt`, and `tensorrt_rtx`, that of TensorRT for RTX, with classes of the same names."""

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import tensorrt as trt

__all__ = ["Api", "Bindings", "Log"]


class Bindings(Protocol):
    """All that is used of such a module."""

    __version__: str
    Builder: "type[trt.Builder]"
    BuilderFlag: "type[trt.BuilderFlag]"
    DataType: "type[trt.DataType]"
    ExecutionContextAllocationStrategy: "type[trt.ExecutionContextAllocationStrategy]"
    HardwareCompatibilityLevel: "type[trt.HardwareCompatibilityLevel]"
    ILogger: "type[trt.ILogger]"
    LayerInformationFormat: "type[trt.LayerInformationFormat]"
    NetworkDefinitionCreationFlag: "type[trt.NetworkDefinitionCreationFlag]"
    OnnxParser: "type[trt.OnnxParser]"
    ProfilingVerbosity: "type[trt.ProfilingVerbosity]"
    Runtime: "type[trt.Runtime]"
    TensorIOMode: "type[trt.TensorIOMode]"


class Log:
    """TensorRT's errors, for the one line of a refusal."""

    def __init__(self, module: Bindings) -> None:
        complaints: list[str] = []

        class Logger(module.ILogger):  # type: ignore[misc, name-defined]
            def __init__(self) -> None:
                module.ILogger.__init__(self)

            def log(self, severity: "trt.ILogger.Severity", msg: str) -> None:
                if severity in (module.ILogger.ERROR, module.ILogger.INTERNAL_ERROR):
                    complaints.append(msg.strip().partition("\n")[0])

        self.logger = Logger()
        self._complaints = complaints

    def reason(self) -> str:
        """Return the first error: later ones are most often its consequence."""
        return self._complaints[0] if self._complaints else "it does not say why"


class Api:
    """
    A TensorRT that is installed: its module, and what not all of them do alike. This is how 10 and 11 do it.

    Parameters
    ----------
    trt : Bindings
        The module.
    name : str
        For people.
    runtime : str
        For manifests, without the version.
    """

    typed = True  # networks compute each tensor in its own type

    def __init__(self, trt: Bindings, *, name: str = "TensorRT", runtime: str = "tensorrt") -> None:
        self.trt = trt
        self.title = f"{name} {trt.__version__}"
        self.runtime = f"{runtime} {trt.__version__}"

    def create_network(self, builder: "trt.Builder") -> "trt.INetworkDefinition":
        """Create a network that is typed as its graph is, which version 11 does by default."""
        return builder.create_network(1 << int(self.trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))

    def complaint(self, error: "trt.ParserError") -> str:
        """Say which node the parser does not take, and why."""
        return f"{error.node_name()} ({error.node_operator()}): {error.desc()}" if error.node_name() else error.desc()

    def memory_size(self, engine: "trt.ICudaEngine") -> int:
        """Return the bytes that one context of any profile needs."""
        size: int = engine.device_memory_size_v2
        return size

    def create_context(self, engine: "trt.ICudaEngine", address: int, size: int) -> "trt.IExecutionContext":
        """Create a context that works in memory which other contexts may use at other times."""
        context = engine.create_execution_context(self.trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        context.set_device_memory(address, size)
        return context
