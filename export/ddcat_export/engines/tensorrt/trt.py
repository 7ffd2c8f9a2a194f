"""Build engine trt: a plan for the GPU of this machine."""

from typing import TYPE_CHECKING

from ddcat.choices import Hardware, Precision
from ddcat.engines.errors import EngineError
from ddcat.engines.tensorrt.cuda import find_gpu
from ddcat.engines.tensorrt.plan import profiles_of
from ddcat.engines.tensorrt.run import TensorRtGraph
from ddcat.engines.tensorrt.trt import api, this_device
from ddcat.hashing import sha256_of_bytes
from ddcat.manifest import EngineEntry, InputShapes
from ddcat_export.engines.base import Built
from ddcat_export.engines.tensorrt.flags import TIMINGS, builder_flags, check_version, hardware_level
from ddcat_export.engines.tensorrt.graph import adapt, channels_of, last_opset
from ddcat_export.engines.tensorrt.plan_builder import PLAN, build_plan, takes_few_shapes

if TYPE_CHECKING:
    import tensorrt as trt

__all__ = ["build", "check_possible"]

_VERSION = api.trt.__version__


def check_possible(precision: Precision) -> None:
    """Refuse what cannot run: see `ddcat_export.engines.check_possible`."""
    check_version(_VERSION, precision)
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
    profiles = profiles_of(shapes, channels_of(graph))
    graph = adapt(graph, api.title, last_opset(_VERSION), int8=precision == "int8")
    caches: list[trt.ITimingCache] = []

    def configure(config: "trt.IBuilderConfig") -> None:
        members, levels = api.trt.BuilderFlag.__members__, api.trt.HardwareCompatibilityLevel.__members__
        for name in builder_flags(
            _VERSION, members, precision, version_compatible=version_compatible, repeat=timings is not None
        ):
            config.set_flag(members[name])
        config.hardware_compatibility_level = levels[hardware_level(hardware, levels)]
        caches.append(config.create_timing_cache(b"" if timings is None else timings))
        if not config.set_timing_cache(caches[0], ignore_mismatch=False):
            raise EngineError("the timing cache is from another GPU or version of TensorRT: build without it")

    plan = build_plan(api, graph, profiles, configure)
    measured = bytes(caches[0].serialize())
    recorded = takes_few_shapes(profiles)
    with TensorRtGraph(
        api, plan.content, profiles, precision=precision, cuda_graphs=recorded, host_code=version_compatible
    ) as opened:
        entry = EngineEntry(
            name="trt",
            file=PLAN,
            graph=file,
            requested_precision=precision,
            effective_precision=precision,
            provider="TensorRT",
            options={
                "typing": "strong" if api.typed else "by flags",
                "tf32": False,
                "cuda_graphs": recorded,
                "version_compatible": version_compatible,
                "hardware": hardware,
                "timings": sha256_of_bytes(measured),
                "timings_given": timings is not None,
            },
            built_for=this_device(),
        )
        return Built({PLAN: plan.content, TIMINGS: measured}, entry, opened.inputs, opened.outputs)
