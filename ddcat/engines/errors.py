"""Exceptions of engines."""

from ddcat.errors import DdcatError

__all__ = ["EngineError", "InputError"]


class EngineError(DdcatError):
    """A runtime that is not installed, a file that it does not load, or a graph that is not what its manifest says."""


class InputError(EngineError):
    """Images of a type, rank or size that the engine does not take; refused before the runtime sees them."""
