"""Exceptions of export; their messages are written for the user."""

from ddcat.errors import DdcatError

__all__ = ["ExportError"]


class ExportError(DdcatError):
    """A graph that is not the model, or an export that this version cannot make."""
