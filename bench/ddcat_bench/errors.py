"""The exception of bench; its messages are written for the user."""

from ddcat.errors import DdcatError

__all__ = ["BenchError"]


class BenchError(DdcatError):
    """A measurement that cannot be made, or results that do not compare."""
