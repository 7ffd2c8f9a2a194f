"""
All that TensorRT 8.6 does otherwise than 10 and 11.

It is here for measuring alone: its wheel holds its libraries, so that it can be carried to a machine without a network. Its
networks have no types, so that it may compute a layer in fp32 where its graph says fp16 or int8; it has no bf16, repeats no
build from a timing cache, and reads integers beyond int32 as the nearest that fit.
"""

from typing import TYPE_CHECKING

from ddcat.choices import Precision
from ddcat.engines.tensorrt.api import Api

if TYPE_CHECKING:
    import tensorrt as trt

__all__ = ["FLAGS", "LAST_OPSET", "Version8"]

LAST_OPSET = 17
FLAGS: dict[Precision, str] = {"fp16": "FP16", "int8": "INT8"}  # of the builder; they allow the types


class Version8(Api):
    """TensorRT 8.6."""

    typed = False

    def create_network(self, builder: "trt.Builder") -> "trt.INetworkDefinition":
        """Create a network whose batch is an axis like any other."""
        return builder.create_network(1 << int(self.trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH))

    def complaint(self, error: "trt.ParserError") -> str:
        """Say why the parser does not take a node, which it does not name."""
        reason: str = error.desc()
        return reason

    def memory_size(self, engine: "trt.ICudaEngine") -> int:
        """Return the bytes that one context of any profile needs."""
        size: int = engine.device_memory_size
        return size

    def create_context(self, engine: "trt.ICudaEngine", address: int, size: int) -> "trt.IExecutionContext":
        """Create a context that works in memory which other contexts may use at other times."""
        context = engine.create_execution_context_without_device_memory()
        context.device_memory = address
        return context
