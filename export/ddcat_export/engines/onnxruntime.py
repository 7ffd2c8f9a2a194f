"""Engines of ONNX Runtime."""

from ddcat.choices import Precision
from ddcat.engines.errors import EngineError
from ddcat.engines.onnxruntime import CPU, CUDA, PROVIDERS, best_provider, open_checked
from ddcat.manifest import EngineEntry, InputShapes
from ddcat_export.engines.base import Built

__all__ = ["build", "check_possible"]

_PRECISIONS: dict[str, tuple[Precision, ...]] = {CPU: ("fp32", "int8"), CUDA: ("fp32", "fp16", "bf16")}


def check_possible(precision: Precision) -> None:
    """Refuse what cannot run: see `ddcat_export.engines.check_possible`."""
    provider = best_provider()
    if precision not in _PRECISIONS[provider]:
        where, reason = (
            ("a CPU", "it has no kernels for other types")
            if provider == CPU
            else ("a GPU", "it has no int8 convolutions there, but TensorRT has")
        )
        raise EngineError(
            f"ONNX Runtime does not compute in {precision} on {where}, only in {' and '.join(_PRECISIONS[provider])}: {reason}"
        )


def build(graph: bytes, *, file: str, precision: Precision, shapes: InputShapes) -> Built:
    """Open a graph and describe it: see `ddcat_export.engines.build_engine`. There are no options."""
    provider = best_provider()
    with open_checked(graph, provider, precision, shapes) as opened:
        entry = EngineEntry(
            name="ort",
            file=file,
            graph=file,
            requested_precision=precision,
            effective_precision=precision,
            provider=provider,
            options=dict(PROVIDERS[provider]),
        )
        return Built({}, entry, opened.inputs, opened.outputs)
