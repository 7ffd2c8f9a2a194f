"""Engines open and run a bundle. Each runtime has one module (TensorRT a package), which alone imports it."""

import importlib
import os
from types import ModuleType
from typing import NamedTuple

from ddcat.bundle import Bundle
from ddcat.engines.base import Engine, Outputs
from ddcat.engines.errors import EngineError
from ddcat.extras import install
from ddcat.text import printable

__all__ = ["ENGINES", "Engine", "Outputs", "check_known", "extra_of", "import_for", "open_engine"]


# ONNX Runtime of 2026 on reports its use to its maker unless it is told not to: a server reaches no other host
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


class _Runtime(NamedTuple):
    module: str  # its `load` opens a bundle
    extra: str
    has_streams: bool = False  # several threads may compute at once


ENGINES = {
    "ort": _Runtime("ddcat.engines.onnxruntime", extra="cpu", has_streams=True),
    "openvino": _Runtime("ddcat.engines.openvino", extra="openvino", has_streams=True),
    "trt": _Runtime("ddcat.engines.tensorrt.trt", extra="gpu"),
    "trt-rtx": _Runtime("ddcat.engines.tensorrt.trt_rtx", extra="rtx"),
}
_ALSO_CALLED = {
    "onnx": "ort",
    "onnxruntime": "ort",
    "onnx-runtime": "ort",
    "tensorrt": "trt",
    "rtx": "trt-rtx",
    "ov": "openvino",
}


def check_known(engine: str, where: str = "") -> None:
    """
    Refuse an engine that this version does not have.

    Parameters
    ----------
    engine : str
        Should be a key of `ENGINES`.
    where : str
        Begins the message.

    Raises
    ------
    EngineError
    """
    if engine not in ENGINES:
        raise EngineError(f"{where}this version has no engine {printable(engine)!r}: it runs {', '.join(ENGINES)}")


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


def import_for(engine: str, module: str, where: str = "") -> ModuleType:
    """
    Import a module that needs the runtime of an engine.

    Parameters
    ----------
    engine : str
        A key of `ENGINES`.
    module : str
    where : str
        Begins the message.

    Raises
    ------
    EngineError
        Naming the extra that brings the runtime, where it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as cause:
        raise EngineError(
            f"{where}the runtime of engine {engine} is not installed ({cause}): {install(ENGINES[engine].extra)}"
        ) from cause


def open_engine(bundle: Bundle, *, threads: int | None = None, streams: int = 1) -> Engine:
    """
    Load a verified bundle into its runtime.

    Parameters
    ----------
    bundle : Bundle
        Its bytes in memory are loaded; its files are not read a second time.
    threads : int, optional
        Threads that compute. Default: the physical cores.
    streams : int
        Threads that may call the engine at the same time, where it is on a CPU: its threads are divided among them, and one
        batch alone is computed by its share. An engine on a GPU always has one.

    Raises
    ------
    EngineError
        Where the runtime is not installed or not known, or the graph is not what the manifest says.
    """
    name, where = bundle.manifest.engine.name, f"{bundle.path}: "
    check_known(name, where)
    several = {"streams": streams} if streams > 1 and ENGINES[name].has_streams else {}
    engine: Engine = import_for(name, ENGINES[name].module, where).load(bundle, threads=threads, **several)
    return engine
