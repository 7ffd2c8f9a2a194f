"""The result of building an engine, whatever its runtime."""

from typing import NamedTuple

from ddcat.manifest import EngineEntry, TensorEntry

__all__ = ["Built"]


class Built(NamedTuple):
    """
    An engine that was just built: what its manifest and its bundle hold.

    Attributes
    ----------
    files : dict of str to bytes
        Beside the graph; none where the runtime loads the graph itself.
    entry : EngineEntry
    inputs, outputs : tuple of TensorEntry
        As the runtime states them.
    runs_here : bool
        False where the engine is for GPUs that this machine does not have.
    """

    files: dict[str, bytes]
    entry: EngineEntry
    inputs: tuple[TensorEntry, ...]
    outputs: tuple[TensorEntry, ...]
    runs_here: bool = True
