"""Build engines from typed graphs; `ddcat.engines` opens and runs them. Nothing here needs torch."""

from typing import Any

from ddcat.choices import Precision
from ddcat.engines import check_known, import_for
from ddcat.manifest import InputShapes
from ddcat_export.engines.base import Built

__all__ = ["build_engine", "check_possible"]

_BUILDERS = {  # modules with a `check_possible` and a `build`, to which the functions below pass their arguments
    "ort": "ddcat_export.engines.onnxruntime",
    "openvino": "ddcat_export.engines.openvino",
    "trt": "ddcat_export.engines.tensorrt.trt",
    "trt-rtx": "ddcat_export.engines.tensorrt.trt_rtx",
}


def check_possible(engine: str, precision: Precision) -> None:
    """
    Refuse an engine that this machine cannot build and, but for "trt-rtx", run.

    Raises
    ------
    EngineError
        With the reason, where the engine is not known, its runtime is not installed, or it does not compute in that precision
        here.
    """
    check_known(engine)
    import_for(engine, _BUILDERS[engine]).check_possible(precision)


def build_engine(
    engine: str, graph: bytes, *, file: str = "model.onnx", precision: Precision, shapes: InputShapes, **options: Any
) -> Built:
    """
    Build an engine from a typed graph, and check the device and the precision in effect.

    Parameters
    ----------
    engine : str
        A key of `ddcat.engines.ENGINES`.
    graph : bytes
        An ONNX file; one in fp32 for "openvino" at bf16, else one of the precision.
    file : str
        Name of the graph in its bundle.
    precision : Precision
    shapes : InputShapes
        Images that the engine must take.
    **options
        Options of the runtime: see the `build` of its module.

    Raises
    ------
    EngineError
        As `check_possible`; also where the runtime does not load the graph, or the device or the precision in effect is not the
        requested one.
    """
    check_possible(engine, precision)
    built: Built = import_for(engine, _BUILDERS[engine]).build(graph, file=file, precision=precision, shapes=shapes, **options)
    return built
