"""Engine trt: plans of TensorRT 10 and 11, for the GPU that they were built on; of 8.6 as well, to be measured."""

import tensorrt

from ddcat.bundle import Bundle
from ddcat.engines.base import CheckedEngine
from ddcat.engines.errors import EngineError
from ddcat.engines.tensorrt.api import Api
from ddcat.engines.tensorrt.cuda import find_gpu
from ddcat.engines.tensorrt.plan import check_runs_here, version_of
from ddcat.engines.tensorrt.run import load_plan
from ddcat.engines.tensorrt.version8 import Version8
from ddcat.manifest import Device

__all__ = ["api", "load", "this_device"]

api: Api = Version8(tensorrt) if version_of(tensorrt.__version__)[0] == 8 else Api(tensorrt)


def load(bundle: Bundle, *, threads: int | None = None) -> CheckedEngine:
    """Load a verified bundle: see `ddcat.engines.open_engine`. A GPU has no threads to set."""
    entry = bundle.manifest.engine
    if not isinstance(entry.built_for, Device):
        raise EngineError(f"the manifest of {bundle.manifest.name} does not say what GPU its plan is for: export again")
    compatible, hardware = entry.options.get("version_compatible") is True, str(entry.options.get("hardware", "this"))
    check_runs_here(entry.built_for, this_device(), version_compatible=compatible, hardware=hardware)
    return load_plan(api, bundle, host_code=compatible)


def this_device() -> Device:
    """
    Describe the GPU of this machine and the TensorRT that is installed.

    Raises
    ------
    EngineError
        Where there is no GPU that CUDA can use.
    """
    gpu = find_gpu()
    return Device(name=gpu.name, compute_capability=gpu.compute_capability, driver=gpu.driver, runtime=api.runtime)
