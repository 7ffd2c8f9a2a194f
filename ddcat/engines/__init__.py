"""Engines: one module for each runtime, which alone imports it."""

import difflib
import importlib
import os
from types import ModuleType
from typing import Any, NamedTuple

from ddcat.bundle import Bundle
from ddcat.engines.base import Built, Engine, Outputs
from ddcat.engines.errors import EngineError
from ddcat.extras import install
from ddcat.manifest import Precision, Shapes
from ddcat.text import printable

__all__ = ["ENGINES", "Built", "Engine", "Outputs", "build_engine", "check_known", "check_possible", "extra_of", "open_engine"]


# ONNX Runtime of 2026 on reports its use to its maker unless it is told not to: a server reaches no other host
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


class _Runtime(NamedTuple):
    module: str  # has check_possible, build and load, which are what the functions below pass their arguments to
    extra: str


ENGINES = {
    "ort": _Runtime("ddcat.engines.onnxruntime", extra="cpu"),
    "openvino": _Runtime("ddcat.engines.openvino", extra="openvino"),
    "trt": _Runtime("ddcat.engines.tensorrt", extra="gpu"),
}
_ALSO_CALLED = {"onnx": "ort", "onnxruntime": "ort", "onnx-runtime": "ort", "tensorrt": "trt", "ov": "openvino"}


def check_known(engine: str, where: str = "") -> None:
    """
    Refuse an engine that this version does not have; of the usual name of a runtime, say which engine that is.

    Parameters
    ----------
    engine : str
        Should be a key of `ENGINES`.
    where : str
        What the message begins with.

    Raises
    ------
    EngineError
    """
    if engine not in ENGINES:
        known = {**_ALSO_CALLED, **{name: name for name in ENGINES}}
        near = difflib.get_close_matches(engine.lower(), known, n=1)
        hint = f"; use {known[near[0]]}" if near else ""
        raise EngineError(f"{where}this version has no engine {printable(engine)!r}: it runs {', '.join(ENGINES)}{hint}")


def extra_of(engine: str) -> str:
    """
    Name the extra of the distribution that brings an engine's runtime.

    Raises
    ------
    EngineError
        Where this version has no such engine.
    """
    check_known(engine)
    return ENGINES[engine].extra


def check_possible(engine: str, precision: Precision) -> None:
    """
    Refuse at once what this machine cannot run.

    Raises
    ------
    EngineError
        Where the engine is not known, its runtime is not installed, or it does not compute in that precision here: with the
        reason.
    """
    _module(engine).check_possible(precision)


def build_engine(
    engine: str, graph: bytes, *, file: str = "model.onnx", precision: Precision, shapes: Shapes, **options: Any
) -> Built:
    """
    Build an engine from a typed graph, and find out what it is in effect.

    Parameters
    ----------
    engine : str
        A key of `ENGINES`.
    graph : bytes
        An ONNX file; one in fp32 for "openvino" at bf16, else one of the precision.
    file : str
        The name that the graph has in its bundle.
    precision : Precision
    shapes : Shapes
        That the engine is to take.
    **options
        Of the runtime: see the `build` of its module.

    Raises
    ------
    EngineError
        As `check_possible`, and where the runtime does not load the graph, or another device or precision is in effect than
        was asked for.
    """
    module = _module(engine)
    module.check_possible(precision)
    built: Built = module.build(graph, file=file, precision=precision, shapes=shapes, **options)
    return built


def open_engine(bundle: Bundle, *, threads: int | None = None) -> Engine:
    """
    Load a verified bundle into its runtime.

    Parameters
    ----------
    bundle : Bundle
        Its bytes in memory are loaded, never its files a second time.
    threads : int, optional
        That compute one batch; the physical cores by default.

    Raises
    ------
    EngineError
        Where the runtime is not installed or not known, or the graph is not what the manifest says.
    """
    engine: Engine = _module(bundle.manifest.engine.name, f"{bundle.path}: ").load(bundle, threads=threads)
    return engine


def _module(engine: str, where: str = "") -> ModuleType:
    check_known(engine, where)
    runtime = ENGINES[engine]
    try:
        return importlib.import_module(runtime.module)
    except ImportError as cause:
        raise EngineError(
            f"{where}the runtime of engine {engine} is not installed ({cause}): {install(runtime.extra)}"
        ) from cause
