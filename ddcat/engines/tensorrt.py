"""TensorRT on an NVIDIA GPU: 10 and 11 typed as the graph is, 8.6 by flags."""

import tensorrt as trt

from ddcat.bundle import Bundle
from ddcat.engines.base import Built, GraphEngine
from ddcat.engines.cuda import find_gpu
from ddcat.engines.errors import EngineError
from ddcat.engines.trt_build import build_plan
from ddcat.engines.trt_graph import fit
from ddcat.engines.trt_plan import Hardware, check_runs_here, check_version, profiles_of, version_of
from ddcat.engines.trt_run import TensorRtGraph
from ddcat.hashing import sha256_of_bytes
from ddcat.manifest import Device, EngineEntry, Precision, Shapes

__all__ = ["PLAN", "TIMINGS", "build", "check_possible", "load"]

PLAN, TIMINGS = "model.plan", "model.timings"


def check_possible(precision: Precision) -> None:
    """Refuse what cannot run: see `ddcat.engines.check_possible`."""
    check_version(trt.__version__, precision)
    find_gpu()


def build(
    graph: bytes,
    *,
    file: str,
    precision: Precision,
    shapes: Shapes,
    timings: bytes | None = None,
    version_compatible: bool = False,
    hardware: Hardware = "this",
) -> Built:
    """
    Build a plan for the GPU of this machine: see `ddcat.engines.build_engine`.

    Its files are the plan and the timing cache of the build.

    Parameters
    ----------
    shapes : Shapes
        With an upper end on each axis.
    timings : bytes, optional
        The timing cache of an earlier build: see `build_plan`.
    version_compatible : bool
        The plan is to run with later minor versions of TensorRT.
    hardware : Hardware
        That the plan is to run on.
    """
    check_possible(precision)
    profiles = profiles_of(shapes)
    graph = fit(graph, trt.__version__, precision)
    plan = build_plan(
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
            built_for=_here(),
        )
        return Built({PLAN: plan.content, TIMINGS: plan.timings}, entry, opened.inputs, opened.outputs)


def load(bundle: Bundle, *, threads: int | None = None) -> GraphEngine:
    """Load a verified bundle where its plan runs: see `ddcat.engines.open_engine`. A GPU has no threads to set."""
    entry = bundle.manifest.engine
    if entry.built_for is None:
        raise EngineError(f"the manifest of {bundle.manifest.name} does not say what GPU its plan is for: export again")
    options = entry.options
    compatible, hardware = options.get("version_compatible") is True, str(options.get("hardware", "this"))
    check_runs_here(entry.built_for, _here(), version_compatible=compatible, hardware=hardware)
    graph = TensorRtGraph(
        bundle.files[entry.file],
        profiles_of(bundle.manifest.shapes),
        precision=entry.effective_precision,
        cuda_graphs=options.get("cuda_graphs") is True,
        host_code=compatible,
    )
    return GraphEngine(graph, bundle.manifest)


def _here() -> Device:
    gpu = find_gpu()
    return Device(
        name=gpu.name,
        compute_capability=gpu.compute_capability,
        driver=gpu.driver,
        runtime=f"tensorrt {trt.__version__}",
    )
