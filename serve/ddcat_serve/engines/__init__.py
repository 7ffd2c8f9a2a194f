"""Engines: one file for each runtime, which alone imports it."""

import importlib
from collections.abc import Callable
from typing import NamedTuple, cast

from ddcat.bundle import Bundle
from ddcat_serve.engines.base import Engine, Outputs
from ddcat_serve.errors import EngineError

__all__ = ["ENGINES", "Engine", "Outputs", "open_engine"]


class _Runtime(NamedTuple):
    module: str
    function: str
    extra: str


ENGINES = {"ort": _Runtime("ddcat_serve.engines.onnxruntime", "open_ort", extra="cpu")}


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
    name = bundle.manifest.engine.name
    if name not in ENGINES:
        raise EngineError(f"{bundle.path} is built for {name!r}, which this version cannot run; it runs {', '.join(ENGINES)}")
    runtime = ENGINES[name]
    try:
        module = importlib.import_module(runtime.module)
    except ImportError as cause:
        raise EngineError(
            f'{bundle.path} needs a runtime that is not installed ({cause}): pip install "ddcat[{runtime.extra}]"'
        ) from cause
    opener = cast(Callable[..., Engine], getattr(module, runtime.function))
    return opener(bundle, threads=threads)
