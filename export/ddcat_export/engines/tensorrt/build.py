"""TensorRT on an NVIDIA GPU: 10 and 11 typed as the graph is, 8.6 by flags."""

from typing import NamedTuple

import tensorrt as trt

from ddcat.choices import Hardware, Precision
from ddcat.engines.errors import EngineError
from ddcat.engines.tensorrt.compat import api
from ddcat.engines.tensorrt.cuda import find_gpu
from ddcat.engines.tensorrt.plan import Profile, profiles_of, version_of
from ddcat.engines.tensorrt.run import Log, TensorRtGraph, this_device
from ddcat.hashing import sha256_of_bytes
from ddcat.manifest import EngineEntry, InputShapes
from ddcat_export.engines.base import Built
from ddcat_export.engines.tensorrt.flags import (
    PLAN,
    TIMINGS,
    Flags,
    builder_flags,
    check_version,
    hardware_level,
)
from ddcat_export.engines.tensorrt.graph import adapt

__all__ = ["build", "check_possible"]


class _Plan(NamedTuple):
    """
    A plan, and what its build measured.

    Attributes
    ----------
    content : bytes
        The plan: native code for one kind of GPU.
    timings : bytes
        The timing cache with all that the build measured or was given: with it, the same kernels are chosen again.
    """

    content: bytes
    timings: bytes


def check_possible(precision: Precision) -> None:
    """Refuse what cannot run: see `ddcat_export.engines.check_possible`."""
    check_version(trt.__version__, precision)
    find_gpu()


def build(
    graph: bytes,
    *,
    file: str,
    precision: Precision,
    shapes: InputShapes,
    timings: bytes | None = None,
    version_compatible: bool = False,
    hardware: Hardware = "this",
) -> Built:
    """
    Build a plan for the GPU of this machine: see `ddcat_export.engines.build_engine`.

    Its files are the plan and the timing cache of the build.

    Parameters
    ----------
    graph, file, precision
        See `ddcat_export.engines.build_engine`.
    shapes : InputShapes
        With an upper end on each axis.
    timings : bytes, optional
        The timing cache of an earlier build here. Kernels are then chosen from it alone; a layer that it lacks is an error.
    version_compatible : bool
        Make a plan that later minor versions of TensorRT run, too, at some cost.
    hardware : Hardware
        GPUs that the plan must run on. Others than this GPU's model cost some speed.
    """
    profiles = profiles_of(shapes)
    graph = adapt(graph, trt.__version__, precision)
    plan = _build_plan(
        graph, profiles, precision=precision, timings=timings, version_compatible=version_compatible, hardware=hardware
    )
    recorded = all(profile.least[1:] == profile.most[1:] for profile in profiles)  # free sizes would be too many graphs
    with TensorRtGraph(
        plan.content, profiles, precision=precision, cuda_graphs=recorded, host_code=version_compatible
    ) as opened:
        entry = EngineEntry(
            name="trt",
            file=PLAN,
            graph=file,
            requested_precision=precision,
            effective_precision=precision,
            provider="TensorRT",
            options={
                "typing": "by flags" if version_of(trt.__version__)[0] == 8 else "strong",
                "tf32": False,
                "cuda_graphs": recorded,
                "version_compatible": version_compatible,
                "hardware": hardware,
                "timings": sha256_of_bytes(plan.timings),
                "timings_given": timings is not None,
            },
            built_for=this_device(),
        )
        return Built({PLAN: plan.content, TIMINGS: plan.timings}, entry, opened.inputs, opened.outputs)


def _build_plan(
    graph: bytes,
    profiles: tuple[Profile, ...],
    *,
    precision: Precision,
    timings: bytes | None = None,
    version_compatible: bool = False,
    hardware: Hardware = "this",
) -> _Plan:
    """
    Build a plan for the GPU of this machine.

    Parameters
    ----------
    graph : bytes
        An ONNX file of the precision, from `adapt`.
    profiles : tuple of Profile
    precision : Precision
    timings : bytes, optional
        A timing cache of an earlier build here. Kernels are then chosen from it alone; a layer that it lacks is an error.
    version_compatible : bool
        The plan must run with later minor versions, at some cost.
    hardware : Hardware
        GPUs that the plan must run on. Others than this GPU's model cost some speed.

    Raises
    ------
    EngineError
        With TensorRT's first reason, where it does not take the graph, the cache is of another machine, or the build fails.
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
    network = api.create_network(builder)
    _parse(network, graph, log)

    config = builder.create_builder_config()
    _set(config, flags)
    config.hardware_compatibility_level = level
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # the inspector can then tell the types of all layers
    cache = config.create_timing_cache(b"" if timings is None else timings)
    if not config.set_timing_cache(cache, ignore_mismatch=False):
        raise EngineError("the timing cache is of another GPU or version of TensorRT: build without it")
    for profile in profiles:
        built = builder.create_optimization_profile()
        built.set_shape("image", min=profile.least, opt=profile.best, max=profile.most)
        if config.add_optimization_profile(built) < 0:
            raise EngineError(f"TensorRT does not take {profile} as a profile: {log.reason()}")
    content = builder.build_serialized_network(network, config)
    if content is None:
        raise EngineError(f"TensorRT {trt.__version__} built no plan: {log.reason()}")
    return _Plan(bytes(content), bytes(cache.serialize()))


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
