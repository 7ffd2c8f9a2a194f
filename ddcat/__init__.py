"""
Train segmentation models that hold up under attack, export them, prove the engine, serve it.

`ddcat.train`, `ddcat.load`, `ddcat.load_onnx`, `ddcat.attack`, `ddcat.export`, `ddcat.open_bundle` and `ddcat.gate` are the
Python interface.
Each is loaded at its first use: `import ddcat` is quick and needs neither torch nor an engine.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ddcat.engines.predictor import open_bundle as open_bundle
    from ddcat_bench.gate.run import gate as gate
    from ddcat_export.exporting import export as export
    from ddcat_export.sources import load_onnx as load_onnx
    from ddcat_train.attacks.named import attack as attack
    from ddcat_train.model import load as load
    from ddcat_train.model import train as train

__version__ = "0.2.0"
__all__ = ["attack", "export", "gate", "load", "load_onnx", "open_bundle", "train"]

_MODULES = {
    "attack": ("ddcat_train.attacks.named", "train"),
    "export": ("ddcat_export.exporting", "train,export,cpu"),
    "gate": ("ddcat_bench.gate.run", "bench,export,cpu"),
    "load": ("ddcat_train.model", "train"),
    "load_onnx": ("ddcat_export.sources", "train,export,cpu"),
    "open_bundle": ("ddcat.engines.predictor", "cpu"),
    "train": ("ddcat_train.model", "train"),
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'ddcat' has no attribute {name!r}")
    from ddcat.extras import needing  # noqa: PLC0415 -- only where something is asked for

    module, extras = _MODULES[name]
    with needing(extras):
        value = getattr(importlib.import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
