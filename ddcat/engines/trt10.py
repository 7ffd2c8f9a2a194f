"""What TensorRT 10 and 11 do in another way than 8.6: networks are typed as their graph is."""

import tensorrt as trt

__all__ = ["create_context", "create_network", "memory_size"]


def create_network(builder: trt.Builder) -> trt.INetworkDefinition:
    """Make a network that computes each tensor in its own type, which version 11 does by itself."""
    return builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))


def memory_size(engine: trt.ICudaEngine) -> int:
    """Bytes that one context of any profile needs."""
    size: int = engine.device_memory_size_v2
    return size


def create_context(engine: trt.ICudaEngine, memory: int, size: int) -> trt.IExecutionContext:
    """Make a context that works in memory which others may use at other times."""
    context = engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
    context.set_device_memory(memory, size)
    return context
