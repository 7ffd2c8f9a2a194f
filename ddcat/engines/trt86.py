"""What TensorRT 8.6 does in another way than 10 and 11: networks have no types, flags allow them."""

import tensorrt as trt

__all__ = ["create_context", "create_network", "memory_size"]


def create_network(builder: trt.Builder) -> trt.INetworkDefinition:
    """Make a network whose batch is an axis like any other."""
    return builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH))


def memory_size(engine: trt.ICudaEngine) -> int:
    """Bytes that one context of any profile needs."""
    size: int = engine.device_memory_size
    return size


def create_context(engine: trt.ICudaEngine, memory: int, size: int) -> trt.IExecutionContext:
    """Make a context that works in memory which others may use at other times."""
    context = engine.create_execution_context_without_device_memory()
    context.device_memory = memory
    return context
