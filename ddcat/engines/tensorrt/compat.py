"""The differences between TensorRT 8.6 and TensorRT 10 and 11."""

import tensorrt as trt

from ddcat.engines.tensorrt.plan import version_of

__all__ = ["api"]


class Version8:
    """TensorRT 8.6: networks have no types; flags allow them."""

    @staticmethod
    def create_network(builder: trt.Builder) -> trt.INetworkDefinition:
        """Create a network whose batch is an axis like any other."""
        return builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH))

    @staticmethod
    def memory_size(engine: trt.ICudaEngine) -> int:
        """Return the bytes that one context of any profile needs."""
        size: int = engine.device_memory_size
        return size

    @staticmethod
    def create_context(engine: trt.ICudaEngine, memory: int, size: int) -> trt.IExecutionContext:
        """Create a context that works in memory which other contexts may use at other times."""
        context = engine.create_execution_context_without_device_memory()
        context.device_memory = memory
        return context


class Version10:
    """TensorRT 10 and 11: networks are typed as their graph is."""

    @staticmethod
    def create_network(builder: trt.Builder) -> trt.INetworkDefinition:
        """Create a network that computes each tensor in its own type, which version 11 does by default."""
        return builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))

    @staticmethod
    def memory_size(engine: trt.ICudaEngine) -> int:
        """Return the bytes that one context of any profile needs."""
        size: int = engine.device_memory_size_v2
        return size

    @staticmethod
    def create_context(engine: trt.ICudaEngine, memory: int, size: int) -> trt.IExecutionContext:
        """Create a context that works in memory which other contexts may use at other times."""
        context = engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        context.set_device_memory(memory, size)
        return context


api: type[Version8] | type[Version10] = Version8 if version_of(trt.__version__)[0] == 8 else Version10
