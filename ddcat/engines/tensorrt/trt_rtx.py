"""Engine trt-rtx: plans of TensorRT for RTX, built for kinds of GPU on any machine and finished on the GPU that loads them."""

from typing import TYPE_CHECKING

import tensorrt_rtx

from ddcat.bundle import Bundle
from ddcat.engines.base import CheckedEngine
from ddcat.engines.errors import EngineError
from ddcat.engines.tensorrt.api import Api, Log
from ddcat.engines.tensorrt.cuda import find_gpu
from ddcat.engines.tensorrt.plan import check_kind_runs_here
from ddcat.engines.tensorrt.run import load_plan
from ddcat.manifest import DeviceKinds

if TYPE_CHECKING:
    import tensorrt as trt

__all__ = ["api", "load"]


class _Rtx(Api):
    """TensorRT for RTX, in which a plan's kernels are compiled where it runs."""

    def create_context(self, engine: "trt.ICudaEngine", address: int, size: int) -> "trt.IExecutionContext":
        """Create a context as TensorRT 10 does, which never changes its kernels between two calls of a shape."""
        settings = engine.create_runtime_config()
        settings.set_execution_context_allocation_strategy(tensorrt_rtx.ExecutionContextAllocationStrategy.USER_MANAGED)
        # by default better kernels come when they are compiled, so that the labels which were tested are not those that follow
        settings.dynamic_shapes_kernel_specialization_strategy = tensorrt_rtx.DynamicShapesKernelSpecializationStrategy.NONE
        context = engine.create_execution_context(settings)
        context.set_device_memory(address, size)
        return context


api = _Rtx(tensorrt_rtx, name="TensorRT for RTX", runtime="tensorrt_rtx")


def load(bundle: Bundle, *, threads: int | None = None) -> CheckedEngine:
    """Load a verified bundle: see `ddcat.engines.open_engine`. A GPU has no threads to set."""
    entry = bundle.manifest.engine
    if not isinstance(entry.built_for, DeviceKinds):
        raise EngineError(f"the manifest of {bundle.manifest.name} does not say what GPUs its plan is for: export again")
    check_kind_runs_here(entry.built_for, find_gpu().compute_capability, api.runtime)
    _check_valid(bundle.files[entry.file])
    return load_plan(api, bundle)


def _check_valid(plan: bytes) -> None:
    log = Log(api.trt)
    validity, told = tensorrt_rtx.Runtime(log.logger).get_engine_validity(plan)
    if validity != tensorrt_rtx.EngineValidity.INVALID:
        return
    members = tensorrt_rtx.EngineInvalidityDiagnostics.__members__
    reasons = [reason for name, reason in _REASONS.items() if told & int(members[name])]
    raise EngineError(f"{api.title} does not run the plan here: {'; '.join(reasons) or log.reason()}")


_REASONS = {
    "VERSION_MISMATCH": "another version built it; build it again: ddcat export BUNDLE --engine trt-rtx",
    "UNSUPPORTED_CC": "it is for other GPUs; build it for this one: ddcat export BUNDLE --engine trt-rtx --for current",
    "OLD_CUDA_DRIVER": "the driver is too old; install a newer driver",
    "OLD_CUDA_RUNTIME": 'CUDA is too old; install a newer one: pip install --upgrade "cuda-python"',
    "INSUFFICIENT_GPU_MEMORY": "this GPU has too little memory; build it for smaller images: ddcat export BUNDLE --size HxW",
    "MALFORMED_ENGINE": "it is not a plan of TensorRT for RTX; export it again",
    "CUDA_ERROR": "CUDA or its driver is not installed as it should be; see what nvidia-smi says",
}
