"""Build engine trt-rtx: a plan for kinds of GPU, on any machine."""

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

import tensorrt_rtx

from ddcat.choices import Precision
from ddcat.engines.errors import EngineError
from ddcat.engines.tensorrt.cuda import find_gpu
from ddcat.engines.tensorrt.plan import profiles_of
from ddcat.engines.tensorrt.run import TensorRtGraph
from ddcat.engines.tensorrt.trt_rtx import api
from ddcat.manifest import DeviceKinds, EngineEntry, InputShapes
from ddcat_export.engines.base import Built
from ddcat_export.engines.tensorrt.graph import adapt, channels_of
from ddcat_export.engines.tensorrt.plan_builder import PLAN, build_plan, takes_few_shapes

if TYPE_CHECKING:
    import tensorrt as trt

__all__ = ["build", "check_possible", "compute_for"]

_CURRENT = "current"
_USUAL = ("sm80", "sm86", "sm89", "sm120")  # what NVIDIA builds for where nothing is said, without its newest
_LAST_OPSET = 27  # the newest that was tried


def check_possible(precision: Precision) -> None:
    """Refuse nothing: TensorRT for RTX builds plans in all precisions on any machine."""


def build(graph: bytes, *, file: str, precision: Precision, shapes: InputShapes, targets: tuple[str, ...] = _USUAL) -> Built:
    """
    Build a plan for kinds of GPU: see `ddcat_export.engines.build_engine`.

    It is opened, and the precision in effect checked, only where such a GPU is here.

    Parameters
    ----------
    graph, file, precision
        See `ddcat_export.engines.build_engine`.
    shapes : InputShapes
        With an upper end on each axis.
    targets : tuple of str
        Compute capabilities, such as "sm89"; or "current" alone, for the GPU of this machine.
    """
    profiles, targets = profiles_of(shapes, channels_of(graph)), tuple(dict.fromkeys(targets))
    capabilities, here = _capabilities(targets, precision), _capability_here()
    plan = build_plan(api, adapt(graph, api.title, _LAST_OPSET, int8=precision == "int8"), profiles, compute_for(targets))
    recorded, runs_here = takes_few_shapes(profiles), here in capabilities
    if runs_here:
        TensorRtGraph(api, plan.content, profiles, precision=precision, cuda_graphs=recorded).close()
    entry = EngineEntry(
        name="trt-rtx",
        file=PLAN,
        graph=file,
        requested_precision=precision,
        effective_precision=precision,
        provider="TensorRT",
        options={"typing": "strong", "tf32": False, "cuda_graphs": recorded},
        built_for=DeviceKinds(compute_capabilities=capabilities, runtime=api.runtime),
    )
    return Built({PLAN: plan.content}, entry, plan.inputs, plan.outputs, runs_here)


def compute_for(targets: tuple[str, ...]) -> "Callable[[trt.IBuilderConfig], None]":
    """Return what sets the GPUs that a plan is built for; `targets` as for `build`."""

    def configure(config: "trt.IBuilderConfig") -> None:
        config.num_compute_capabilities = len(targets)
        for index, target in enumerate(targets):
            config.set_compute_capability(tensorrt_rtx.ComputeCapability.__members__[target.upper()], index)

    return configure


def _capabilities(targets: tuple[str, ...], precision: Precision) -> tuple[str, ...]:
    if _CURRENT in targets:
        if len(targets) > 1:
            raise EngineError("--for current cannot be combined with other GPUs: leave those out")
        return (find_gpu().compute_capability,)
    known = [name.lower() for name in tensorrt_rtx.ComputeCapability.__members__ if re.fullmatch(r"SM\d+", name)]
    for target in targets:
        if target not in known:
            raise EngineError(f"--for {target}: {api.title} builds for {', '.join(known)}, or current")
    if precision == "bf16" and "sm75" in targets:
        raise EngineError("--for sm75: such a GPU does not compute in bf16; use --precision fp16")
    return tuple(f"{target[2:-1]}.{target[-1]}" for target in targets)


def _capability_here() -> str | None:
    try:
        return find_gpu().compute_capability
    except EngineError:
        return None
