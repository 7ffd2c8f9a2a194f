"""Building a TensorRT plan from a typed graph."""

from typing import NamedTuple

import tensorrt as trt

from ddcat.engines import trt10, trt86
from ddcat.engines.errors import EngineError
from ddcat.engines.trt_plan import Flags, Hardware, Profile, builder_flags, hardware_level, version_of
from ddcat.manifest import Precision

__all__ = ["Log", "Plan", "build_plan"]


class Plan(NamedTuple):
    """
    What a build leaves.

    Attributes
    ----------
    content : bytes
        The plan: native code for one kind of GPU.
    timings : bytes
        The timing cache with all that the build measured or was given: with it, the same kernels are chosen again.
    """

    content: bytes
    timings: bytes


class Log(trt.ILogger):  # type: ignore[misc]
    """Keeps what TensorRT complains of, for the one line that a refusal has."""

    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self.complaints: list[str] = []

    def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
        """Take a message."""
        if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
            self.complaints.append(msg.strip().partition("\n")[0])

    def reason(self) -> str:
        """Give the first complaint: what follows is most often its consequence."""
        return self.complaints[0] if self.complaints else "it does not say why"


def build_plan(
    graph: bytes,
    profiles: tuple[Profile, ...],
    *,
    precision: Precision,
    timings: bytes | None = None,
    version_compatible: bool = False,
    hardware: Hardware = "this",
) -> Plan:
    """
    Build a plan for the GPU of this machine.

    Parameters
    ----------
    graph : bytes
        An ONNX file of the precision, which `trt_graph.fit` let pass.
    profiles : tuple of Profile
    precision : Precision
    timings : bytes, optional
        A timing cache of an earlier build here; then kernels are chosen from it alone, and one that it lacks refuses.
    version_compatible : bool
        The plan is to run with later minor versions, at some cost.
    hardware : Hardware
        That the plan is to run on, at some cost where it is not this GPU's model alone.

    Raises
    ------
    EngineError
        Where TensorRT does not take the graph, the cache is of another machine, or nothing comes of the build: with the first
        reason that it gives.
    """
    flags = builder_flags(
        trt.__version__,
        trt.BuilderFlag.__members__,
        precision,
        version_compatible=version_compatible,
        repeat=timings is not None,
    )
    level = trt.HardwareCompatibilityLevel.__members__[hardware_level(hardware, trt.HardwareCompatibilityLevel.__members__)]
    log = Log()
    builder = trt.Builder(log)
    network = _create_network(builder)
    _parse(network, graph, log)

    config = builder.create_builder_config()
    _set(config, flags)
    config.hardware_compatibility_level = level
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # the inspector can then tell the types of all layers
    cache = config.create_timing_cache(b"" if timings is None else timings)
    if not config.set_timing_cache(cache, ignore_mismatch=False):
        raise EngineError("the timing cache is of another GPU or version of TensorRT: build without it")
    for wanted in profiles:
        profile = builder.create_optimization_profile()
        profile.set_shape("image", min=wanted.least, opt=wanted.best, max=wanted.most)
        if config.add_optimization_profile(profile) < 0:
            raise EngineError(f"TensorRT does not take {wanted} as a profile: {log.reason()}")
    content = builder.build_serialized_network(network, config)
    if content is None:
        raise EngineError(f"TensorRT {trt.__version__} built no plan: {log.reason()}")
    return Plan(bytes(content), bytes(cache.serialize()))


def _create_network(builder: trt.Builder) -> trt.INetworkDefinition:
    network: trt.INetworkDefinition
    network = trt86.create_network(builder) if version_of(trt.__version__)[0] == 8 else trt10.create_network(builder)
    return network


def _parse(network: trt.INetworkDefinition, graph: bytes, log: Log) -> None:
    parser = trt.OnnxParser(network, log)
    if not parser.parse(graph):
        complaint = parser.get_error(0).desc() if parser.num_errors else log.reason()
        raise EngineError(f"TensorRT {trt.__version__} does not take the graph: {complaint}")


def _set(config: trt.IBuilderConfig, flags: Flags) -> None:
    for name in flags.on:
        config.set_flag(trt.BuilderFlag.__members__[name])
    for name in flags.off:
        config.clear_flag(trt.BuilderFlag.__members__[name])
