"""Checks of a command's arguments that need no library, so that wrong arguments are reported first."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from ddcat.bundle import MANIFEST, Bundle
from ddcat.engines import extra_of
from ddcat.extras import needing
from ddcat_bench.errors import BenchError
from ddcat_train.checkpoint_files import check_checkpoint

__all__ = ["check_model", "check_source", "libraries_for", "parse_epsilon"]


def parse_epsilon(text: str) -> float:
    """Parse a bound: 0.03, or 8/255. Raises BenchError."""
    above, slash, below = text.partition("/")
    try:
        epsilon = float(above) / float(below if slash else 1)
    except (ValueError, ZeroDivisionError):
        epsilon = 0.0
    if not 0 < epsilon <= 1:
        raise BenchError(f"--epsilon {text}: use a number above 0 and up to 1, such as 0.03 or 8/255")
    return epsilon


def check_source(bundle: Bundle, moved_to: Path | None) -> Path:
    """
    Find the checkpoint that a bundle was made from, or the run that it is in; at `moved_to` if it has moved.

    Raises BenchError if it is not there.
    """
    place = moved_to or Path(bundle.manifest.source.checkpoint)
    if not place.exists():
        raise BenchError(
            f"the checkpoint that {bundle.path} was made from is not at {place}: use --checkpoint PATH to say where it is now"
        )
    return place


def check_model(path: Path) -> Literal["onnx", "bundle", "checkpoint"]:
    """Find a model, and say what it is in. Raises DdcatError if there is none."""
    if path.suffix.lower() == ".onnx":
        if not path.is_file():
            raise BenchError(f"no such ONNX file: {path}")
        return "onnx"
    if (path / MANIFEST).is_file():
        return "bundle"
    check_checkpoint(path)
    return "checkpoint"


@contextmanager
def libraries_for(bundle: Bundle) -> Iterator[None]:
    """Turn a missing library into an error that names the extras for this bundle's engine."""
    with needing(f"bench,export,{extra_of(bundle.manifest.engine.name)}"):
        yield
