"""
What torch's exporter finds out anew for every graph, found out once: half of the time that a small network takes.

Tests export often, and register no operators between.
"""

import copy
import functools
from typing import Any

import torch

__all__ = ["remember"]


def remember() -> None:
    """Let it remember from its first export on: to import its parts takes a second, which not every process needs."""
    export = torch.onnx.export

    @functools.wraps(export)
    def exported(*given: Any, **options: Any) -> Any:
        _remember()
        return export(*given, **options)

    torch.onnx.export = exported


@functools.cache
def _remember() -> None:
    from torch._export import utils  # noqa: PLC0415
    from torch.onnx._internal.exporter import _registration  # noqa: PLC0415

    if hasattr(utils, "_materialize_cpp_cia_ops"):  # it looks operators up, for each of torch's namespaces
        utils._materialize_cpp_cia_ops = functools.cache(utils._materialize_cpp_cia_ops)
    read = functools.cache(_registration.ONNXRegistry.from_torchlib)  # it parses the source of five hundred functions

    def registry(**options: Any) -> Any:
        own = copy.copy(read(**options))
        own.functions = {target: list(known) for target, known in own.functions.items()}
        return own

    _registration.ONNXRegistry.from_torchlib = staticmethod(registry)
